"""Reading the examples of a fine-tune job: every row must be whole, and what is wrong is said before sending."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UsageError
from common.examples import PROMPTED, SHAPES, Shape, choose_shape, is_empty, make_example
from common.labels import Labels, check_seen, survey
from common.labels import split as split_examples
from common.settings import Settings
from common.tasks import Task
from common.training import Training
from common.values import Json, Record
from producer.inputs import read_records

#: Examples in one payload.
CHUNK_RECORDS = 2000


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """The examples of a job, and what is to be said of them."""

    train: list[dict[str, Json]]
    evaluation: list[dict[str, Json]]
    labels: Labels | None  #: None for a data set that the worker loads
    said: list[str]


def read_examples(
    task: str,
    inputs: Sequence[str],
    evaluation: str | None,
    training: Training,
    share: float | None,
    settings: Settings,
    format: str | None,
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

    Raises:
        UsageError: a file cannot be read, a row is broken, or there is nothing to learn.
    """
    said: list[str] = []
    own = [] if training.train_source else _read(task, inputs, training, settings, format, said)
    other = [] if training.eval_source or not evaluation else _read(
        task, [evaluation], training, settings, format, said
    )  # fmt: skip
    if training.train_source:
        return ExampleSet([], other, None, said)
    labels = survey(task, own)
    said += [labels.words] * bool(labels.words) + list(labels.warnings)
    if other and evaluation:
        check_seen(labels, other, evaluation)
    elif share is not None:
        kept, held_out, more = split_examples(labels, own, share, training.seed)
        said += [f"{len(held_out):,} of {len(own):,} examples are held out for evaluation.", *more]
        own, other = [dict(example) for example in kept], [dict(example) for example in held_out]
    return ExampleSet(own, other, labels, said)


def _read(
    task: str, inputs: Sequence[str], training: Training, settings: Settings, format: str | None, said: list[str]
) -> list[dict[str, Json]]:
    reading = _as_read(task, training)
    records = read_records(inputs, reading, format=format, max_record_bytes=settings.max_record_bytes)
    examples = [_example(task, record, training, inputs) for record in records]
    whole = [example for example in examples if not is_empty(example)]
    if len(whole) < len(examples):
        number = len(examples) - len(whole)
        said.append(f"{number:,} {'example' if number == 1 else 'examples'} without text: left out.")
    return whole


def _as_read(task: str, training: Training) -> Task:
    """Return the task as the readers of inputs take it: each pair of columns that would do."""
    shapes = (PROMPTED, SHAPES[task]) if task == "text-generation" else (SHAPES[task],)
    fields = tuple(columns for shape in shapes for columns in _alternatives(shape, training))
    options = "--text-column and --label-column" if SHAPES[task].label else "--text-column"
    return Task(f"fine-tuning {task}", "", fields=fields, optional=("text_pair",), hint=f"Name them with {options}.")


def _alternatives(shape: Shape, training: Training) -> list[tuple[str, ...]]:
    texts = (training.text_column,) if training.text_column else shape.text
    if not shape.label:
        return [(text,) for text in texts]
    labels = (training.label_column,) if training.label_column else shape.label
    return [(text, label) for text in texts for label in labels]


def _example(task: str, record: Record, training: Training, inputs: Sequence[str]) -> dict[str, Json]:
    if record.failure is not None:
        raise UsageError(f"{record.failure.message.rstrip('.')}. Mend or remove it: all examples must be whole.")
    row = {"text": record.input} if isinstance(record.input, str) else record.input
    try:
        text, label = choose_shape(task, list(row), training.text_column, training.label_column)
        return make_example(task, row, text, label)
    except UsageError as error:
        raise UsageError(f"{', '.join(inputs)}, record {record.id}: {error}") from error
