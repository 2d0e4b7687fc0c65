"""Reading the examples of a fine-tune job: every row must be whole, and what is wrong is said before sending."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import UsageError
from common.inputs import find_inputs
from common.records import Json, Record
from common.settings import Settings
from common.tasks import Task
from common.training.examples import SCHEMAS, ExampleSchema, choose_columns, is_empty, make_example, schemas_of
from common.training.labels import Labels, check_labels_known, infer_labels
from common.training.labels import split as split_examples
from common.training.options import TrainingOptions

#: Examples in one payload.
CHUNK_RECORDS = 2000

#: Format and quoting of the files, None where they are told by the extension.
_Form = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """The examples of a job, and what is to be said of them."""

    train: list[dict[str, Json]]
    evaluation: list[dict[str, Json]]
    labels: Labels | None  #: None for a data set that the worker loads
    notes: list[str]


def read_examples(
    task: str,
    inputs: Sequence[str],
    evaluation: str | None,
    training: TrainingOptions,
    share: float | None,
    settings: Settings,
    format: str | None,
    quoting: str | None = None,
) -> ExampleSet:
    """Return the examples of the files; those of a data set of the hub are left to the worker.

    Args:
        task: a task that can be fine-tuned.
        inputs: files to learn from.
        evaluation: file to evaluate with.
        training: says which columns hold text and label, and which parts come from the hub.
        share: of the examples that is held out for evaluation.
        settings: bounds the length of a record.
        format: of the files, against their extensions.
        quoting: of CSV and TSV, against their defaults.

    Raises:
        UsageError: a file cannot be read, a row is broken, or there is nothing to learn.
    """
    notes: list[str] = []
    own = [] if training.train_source else _read(task, inputs, training, settings, (format, quoting), notes)
    other = [] if training.eval_source or not evaluation else _read(
        task, [evaluation], training, settings, (format, quoting), notes
    )  # fmt: skip
    if training.train_source:
        return ExampleSet([], other, None, notes)
    labels = infer_labels(task, own)
    notes += [labels.words] * bool(labels.words) + list(labels.warnings)
    if other and evaluation:
        check_labels_known(labels, other, evaluation)
    elif share is not None:
        kept, held_out, more = split_examples(labels, own, share, training.seed)
        notes += [f"{len(held_out):,} of {len(own):,} examples are held out for evaluation.", *more]
        own, other = [dict(example) for example in kept], [dict(example) for example in held_out]
    return ExampleSet(own, other, labels, notes)


def _read(
    task: str, inputs: Sequence[str], training: TrainingOptions, settings: Settings, form: _Form, notes: list[str]
) -> list[dict[str, Json]]:
    examples = [
        example for source in inputs for example in _read_input(task, source, training, settings.max_record_bytes, form)
    ]
    whole = [example for example in examples if not is_empty(example)]
    if len(whole) < len(examples):
        number = len(examples) - len(whole)
        notes.append(f"{number:,} {'example' if number == 1 else 'examples'} without text: left out.")
    return whole


def _read_input(task: str, source: str, training: TrainingOptions, most: int, form: _Form) -> Iterator[dict[str, Json]]:
    """Give the examples of one input, whose first row decides which columns are read."""
    columns: tuple[str, str | None] | None = None
    format, quoting = form
    records = find_inputs([source], _as_read(task, training), format=format, quoting=quoting).records(most)
    for number, record in enumerate(records, 1):
        row = _row(record)
        try:
            found = choose_columns(task, list(row), training.text_column, training.label_column)
            columns = columns or found
            if found != columns:
                raise UsageError(f"it has {_named(found)}, the first row has {_named(columns)}: name one of them")
            yield make_example(task, row, *columns)
        except UsageError as error:
            raise UsageError(f"{source}, row {number}: {error}") from error


def _row(record: Record) -> dict[str, Json]:
    if record.failure is not None:
        raise UsageError(f"{record.failure.message.rstrip('.')}. Mend or remove it: all examples must be whole.")
    return {"text": record.input} if isinstance(record.input, str) else record.input


def _named(columns: Sequence[str | None]) -> str:
    return " and ".join(repr(name) for name in columns if name)


def _as_read(task: str, training: TrainingOptions) -> Task:
    """Return the task as the readers of inputs take it: each pair of columns that would do."""
    fields = tuple(columns for schema in schemas_of(task) for columns in _alternatives(schema, training))
    options = "--text-column and --label-column" if SCHEMAS[task].label else "--text-column"
    return Task(f"fine-tuning {task}", "", fields=fields, optional=("text_pair",), hint=f"Name them with {options}.")


def _alternatives(schema: ExampleSchema, training: TrainingOptions) -> list[tuple[str, ...]]:
    texts = (training.text_column,) if training.text_column else schema.text
    if not schema.label:
        return [(text,) for text in texts]
    labels = (training.label_column,) if training.label_column else schema.label
    return [(text, label) for text in texts for label in labels]
