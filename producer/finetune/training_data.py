"""Training data of a fine-tune job: examples read from files, every row checked before anything is submitted."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UsageError
from common.inputs import find_inputs
from common.records import Json, Record
from common.tasks import Task
from common.template import TEMPLATE_FIELD, Template
from common.training.examples import (
    OPTIONAL,
    SCHEMAS,
    ExampleSchema,
    choose_columns,
    is_empty,
    make_example,
    schemas_of,
)
from common.training.kinds import PAIR_TASKS, Example
from common.training.labels import Labels, check_labels_known, infer_labels, split_train_eval
from common.training.options import TrainingOptions
from common.training.text_pairs import NEGATIVES, SEPARATOR, column_hint, pair_fields
from producer.finetune.options import FinetuneOptions
from producer.submit.python_records import python_builder, records_from_python

#: Examples in one payload.
CHUNK_RECORDS = 2000


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """The examples of a job, and notes about them for the user."""

    train: list[Example]
    evaluation: list[Example]
    labels: Labels | None  #: None for a dataset that the worker loads
    notes: list[str]


@dataclass(frozen=True, slots=True)
class ExampleSource:
    """Where examples come from."""

    paths: tuple[str, ...] = ()  #: files, or one dataset on the Hub
    values: Iterable[Any] = ()  #: Python records or a table, as `split_records_arg` returns them

    @property
    def label(self) -> str:
        """Its name in messages."""
        return ", ".join(self.paths) or "records"


@dataclass(frozen=True, slots=True)
class ExampleReader:
    """Reads the examples of a task, each checked, from files and Python objects."""

    task: str  #: a task that can be fine-tuned
    options: FinetuneOptions  #: format and quoting
    training: TrainingOptions  #: columns or template, the datasets on the Hub, and the fraction held out for evaluation
    max_record_bytes: int  #: longer records are refused

    def read(self, train: ExampleSource, evaluation: ExampleSource | None) -> ExampleSet:
        """Return the examples of both; a dataset on the Hub is left to the worker.

        Raises:
            UsageError: A file cannot be read, an example is invalid, or there is nothing to learn.
        """
        notes: list[str] = []
        held_out: list[Example] = []
        if evaluation and not self.training.eval_source:
            held_out = self._examples(evaluation, notes)
        if self.training.train_source:
            return ExampleSet([], held_out, None, notes)
        examples = self._examples(train, notes)
        labels = infer_labels(self.task, examples)
        notes += [text for text in (labels.description, *labels.warnings) if text]
        if held_out and evaluation:
            check_labels_known(labels, held_out, evaluation.label)
        elif self.training.eval_split is not None:
            count = len(examples)
            examples, held_out, more = split_train_eval(labels, examples, self.training.eval_split, self.training.seed)
            notes += [f"{len(held_out):,} of {count:,} examples are held out for evaluation.", *more]
        return ExampleSet(examples, held_out, labels, notes)

    def _examples(self, source: ExampleSource, notes: list[str]) -> list[Example]:
        examples = [example for path in source.paths for example in self._checked(path, self._file_records(path))]
        if not source.paths:
            examples = list(self._checked(source.label, self._python_records(source.values)))
        kept: list[Example] = [example for example in examples if not is_empty(example)]
        if left_out := len(examples) - len(kept):
            notes.append(f"{left_out:,} {'example' if left_out == 1 else 'examples'} without text: left out.")
        return kept

    def _file_records(self, path: str) -> Iterator[Record]:
        found = find_inputs(
            [path],
            self._as_read,
            format=self.options.format,
            quoting=self.options.quoting,
            template=self._template,
        )
        return found.records(self.max_record_bytes)

    def _python_records(self, values: Iterable[Any]) -> Iterator[Record]:
        return records_from_python(
            values, python_builder(self._as_read, template=self._template), self.max_record_bytes
        )

    def _checked(self, source: str, records: Iterable[Record]) -> Iterator[dict[str, Json]]:
        """Yield the examples of one input; its first row decides which columns are read."""
        columns: tuple[str, str | None] | None = None
        for number, record in enumerate(records, 1):
            row = self._row(record, is_first=columns is None)
            try:
                here = self._choose_columns(list(row))
                columns = columns or here
                if here != columns:
                    raise UsageError(
                        f"it has {_named(here)}, the first row has {_named(columns)}: give all rows the same columns, "
                        "an empty cell is none, or select them with --text-column and --label-column"
                    )
                yield make_example(self.task, row, *columns)
            except UsageError as error:
                raise UsageError(f"{source}, row {number}: {error}") from error

    def _row(self, record: Record, *, is_first: bool) -> dict[str, Json]:
        failure = record.failure
        if failure is not None:
            advice = "Fix or remove it: all examples must be valid."
            if is_first and failure.code == "missing_field":
                advice = f"Fix or remove it, or read other columns. {self._as_read.hint}"
            raise UsageError(f"{failure.message.rstrip('.')}. {advice}")
        return {"text": record.input} if isinstance(record.input, str) else record.input

    def _choose_columns(self, names: Sequence[str]) -> tuple[str, str | None]:
        training = self.training
        templated = training.template is not None
        return choose_columns(self.task, names, training.text_column, training.label_column, templated=templated)

    @property
    def _template(self) -> Template | None:
        return Template.parse(self.training.template) if self.training.template else None

    @property
    def _as_read(self) -> Task:
        """The task for the input readers: its fields are the sets of columns that it accepts."""
        text, label = self.training.text_column, self.training.label_column
        if self.task in PAIR_TASKS:
            fields, optional = pair_fields(self.task, text, label), () if text else NEGATIVES
            return Task(f"fine-tuning {self.task}", "", fields=fields, optional=optional, hint=column_hint(self.task))
        schemas = schemas_of(self.task, text, label, templated=self.training.template is not None)
        fields = tuple(columns for schema in schemas for columns in _alternatives(schema, self.training))
        options = "--text-column and --label-column" if SCHEMAS[self.task].label else "--text-column"
        hint = f"Select them with {options}."
        return Task(f"fine-tuning {self.task}", "", fields=fields, optional=OPTIONAL.get(self.task, ()), hint=hint)


def _named(columns: Sequence[str | None]) -> str:
    return ", ".join(repr(name) for part in columns if part for name in part.split(SEPARATOR))


def _alternatives(schema: ExampleSchema, training: TrainingOptions) -> list[tuple[str, ...]]:
    texts = (training.text_column,) if training.text_column else schema.text
    texts = (TEMPLATE_FIELD,) if training.template else texts
    if not schema.label:
        return [(text,) for text in texts]
    labels = (training.label_column,) if training.label_column else schema.label
    return [(text, label) for text in texts for label in labels]
