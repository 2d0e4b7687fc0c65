"""Training data of a fine-tune job: examples read from files, every row checked before anything is submitted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import UsageError
from common.inputs import find_inputs
from common.records import Json, Record
from common.tasks import Task
from common.training.examples import SCHEMAS, ExampleSchema, choose_columns, is_empty, make_example, schemas_of
from common.training.labels import Example, Labels, check_labels_known, infer_labels, split_train_eval
from common.training.options import TrainingOptions
from producer.finetune.options import FinetuneOptions

#: Examples in one payload.
CHUNK_RECORDS = 2000


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """The examples of a job, and notes about them for the user."""

    train: list[Example]
    evaluation: list[Example]
    labels: Labels | None  #: None for a dataset that the worker loads
    notes: list[str]


def read_examples(
    task: str, inputs: Sequence[str], options: FinetuneOptions, training: TrainingOptions, max_record_bytes: int
) -> ExampleSet:
    """Return the examples in the files; a dataset on the Hub is left to the worker.

    Args:
        task: A task that can be fine-tuned.
        inputs: Files to learn from.
        options: Evaluation file, format and quoting.
        training: Columns of text and label, the datasets on the Hub, and the fraction held out for evaluation.
        max_record_bytes: Longer records are refused.

    Raises:
        UsageError: A file cannot be read, a row is invalid, or there is nothing to learn.
    """
    notes: list[str] = []
    evaluation: list[Example] = []
    if options.evaluation and not training.eval_source:
        evaluation = _read_inputs(task, [options.evaluation], options, training, max_record_bytes, notes)
    if training.train_source:
        return ExampleSet([], evaluation, None, notes)
    train = _read_inputs(task, inputs, options, training, max_record_bytes, notes)
    labels = infer_labels(task, train)
    notes += [text for text in (labels.description, *labels.warnings) if text]
    if evaluation and options.evaluation:
        check_labels_known(labels, evaluation, options.evaluation)
    elif training.eval_split is not None:
        count = len(train)
        train, evaluation, more = split_train_eval(labels, train, training.eval_split, training.seed)
        notes += [f"{len(evaluation):,} of {count:,} examples are held out for evaluation.", *more]
    return ExampleSet(train, evaluation, labels, notes)


def _read_inputs(
    task: str,
    inputs: Sequence[str],
    options: FinetuneOptions,
    training: TrainingOptions,
    max_record_bytes: int,
    notes: list[str],
) -> list[Example]:
    examples = [e for source in inputs for e in _read_input(task, source, options, training, max_record_bytes)]
    kept: list[Example] = [example for example in examples if not is_empty(example)]
    if left_out := len(examples) - len(kept):
        notes.append(f"{left_out:,} {'example' if left_out == 1 else 'examples'} without text: left out.")
    return kept


def _read_input(
    task: str, source: str, options: FinetuneOptions, training: TrainingOptions, max_record_bytes: int
) -> Iterator[dict[str, Json]]:
    """Yield the examples of one input; its first row decides which columns are read."""
    columns: tuple[str, str | None] | None = None
    found = find_inputs([source], _as_read(task, training), format=options.format, quoting=options.quoting)
    records = found.records(max_record_bytes)
    for number, record in enumerate(records, 1):
        row = _row(record)
        try:
            here = choose_columns(task, list(row), training.text_column, training.label_column)
            columns = columns or here
            if here != columns:
                raise UsageError(f"it has {_named(here)}, the first row has {_named(columns)}: name one of them")
            yield make_example(task, row, *columns)
        except UsageError as error:
            raise UsageError(f"{source}, row {number}: {error}") from error


def _row(record: Record) -> dict[str, Json]:
    if record.failure is not None:
        raise UsageError(f"{record.failure.message.rstrip('.')}. Fix or remove it: all examples must be valid.")
    return {"text": record.input} if isinstance(record.input, str) else record.input


def _named(columns: Sequence[str | None]) -> str:
    return " and ".join(repr(name) for name in columns if name)


def _as_read(task: str, training: TrainingOptions) -> Task:
    """Return the task for the input readers: its fields are the pairs of columns that it accepts."""
    fields = tuple(columns for schema in schemas_of(task) for columns in _alternatives(schema, training))
    options = "--text-column and --label-column" if SCHEMAS[task].label else "--text-column"
    return Task(f"fine-tuning {task}", "", fields=fields, optional=("text_pair",), hint=f"Select them with {options}.")


def _alternatives(schema: ExampleSchema, training: TrainingOptions) -> list[tuple[str, ...]]:
    texts = (training.text_column,) if training.text_column else schema.text
    if not schema.label:
        return [(text,) for text in texts]
    labels = (training.label_column,) if training.label_column else schema.label
    return [(text, label) for text in texts for label in labels]
