"""The examples of a run: from payload files, or from a data set of the hub; and their encoded form for Trainer."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import ModelError, UsageError, WorkerError, first_line
from common.payloads.codec import decode_records
from common.records import Json
from common.training.examples import choose_columns, is_empty, make_example
from common.training.labels import Example, Labels, check_labels_known, infer_labels, split
from common.training.options import HUB_PREFIX, TrainingOptions
from workers.disk_space import DISK_FULL_ERRNOS
from workers.training.run_config import TrainingRunConfig

#: What the hub's HTTP library raises without network, by name: the library itself changes with the hub's version.
_NO_NETWORK = "TransportError"
#: HTTP statuses below 500 that mean "not now": too slow, and too many requests.
_LATER = (408, 429)


class Examples:
    """What is learnt from and judged by, with what its labels are."""

    def __init__(self, run_config: TrainingRunConfig) -> None:
        training, task = run_config.training, run_config.job.task
        self.notes: list[str] = []
        self.train = self._load(task, training, training.train_source, run_config.examples.get("train", ()))
        self.evaluation = self._load(task, training, training.eval_source, run_config.examples.get("eval", ()))
        self.labels = self._labels(task, training)
        self.notes += self.labels.warnings
        if self.evaluation:
            check_labels_known(self.labels, self.evaluation, training.eval_source or "the evaluation set")
        elif training.eval_split:
            self.train, self.evaluation, said = split(self.labels, self.train, training.eval_split, training.seed)
            self.notes += said

    def remove(self, part: str, numbers: Iterable[int]) -> None:
        """Leave out the examples of these numbers of a part, "train" or "eval"."""
        name, unwanted = {"train": "train", "eval": "evaluation"}[part], frozenset(numbers)
        setattr(self, name, [example for n, example in enumerate(getattr(self, name)) if n not in unwanted])

    def _labels(self, task: str, training: TrainingOptions) -> Labels:
        """Return what the producer found; a part that is left to learn from may not show all of it any more."""
        if training.labels is not None:
            labels = Labels.decode(training.labels)
            check_labels_known(labels, self.train, "the training set")
            return labels
        labels = infer_labels(task, self.train)
        if training.train_source and labels.words:  # of files, the producer has said it
            self.notes.append(labels.words)
        return labels

    def _load(self, task: str, training: TrainingOptions, source: str | None, files: Sequence[str]) -> list[Example]:
        if source is None:
            return [record.input for file in files for record in decode_records(Path(file).read_bytes())]
        examples = list(_from_hub(task, training, source))
        whole = [example for example in examples if not is_empty(example)]
        if len(whole) < len(examples):
            self.notes.append(f"{source}: {len(examples) - len(whole):,} empty texts are left out.")
        return list(whole)


def to_dataset(columns: Mapping[str, list[Any]]) -> Any:
    """Return the examples as Trainer takes them, with their lengths for grouping."""
    import datasets

    lengths = [len(ids) for ids in columns["input_ids"]]
    return datasets.Dataset.from_dict({**columns, "length": lengths})


def _from_hub(task: str, training: TrainingOptions, source: str) -> Iterable[dict[str, Json]]:
    """Load a data set of the hub, whose columns and classes it describes itself."""
    name, _, part = source.removeprefix(HUB_PREFIX).partition(":")
    dataset = _download(name, part or "train")
    text, label = choose_columns(task, dataset.column_names, training.text_column, training.label_column)
    names = _class_names(dataset.features.get(label)) if label else None
    for number, row in enumerate(dataset):
        try:
            if names and label:
                row = {**row, label: _named(row[label], names)}  # noqa: PLW2901
            yield make_example(task, row, text, label)
        except UsageError as error:
            raise UsageError(f"{source} row {number + 1}: {error}") from error


def _download(name: str, part: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, split=part)
    except Exception as error:  # a boundary: the errors of hub, file system and formats have no common base
        message = f"hf:{name}:{part} cannot be loaded: {first_line(error)}"
        if _is_of_this_place(error):
            full = isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
            raise WorkerError("disk_full" if full else "hub_unavailable", message) from error
        raise ModelError("dataset_not_found", message) from error


def _is_of_this_place(error: BaseException) -> bool:
    """Whether the network or the disk is to blame, so that another worker, or a later try, may have the data set."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, FileNotFoundError) or _refuses(seen):  # the hub's word that there is no such data set
            return False
        if isinstance(seen, OSError) or _NO_NETWORK in (kind.__name__ for kind in type(seen).__mro__):
            return True
        seen = seen.__cause__
    return False


def _refuses(error: BaseException) -> bool:
    """Whether a server answered, and what it said will stay true: its errors are `OSError` too."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _LATER


def _class_names(feature: Any) -> list[str] | None:
    inner = getattr(feature, "feature", feature)
    names: list[str] | None = getattr(inner, "names", None)
    return names


def _named(value: Json, names: Sequence[str]) -> Json:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UsageError(f"a label must be a number from 0 to {len(names) - 1}, found {value}: this row has none")
    return names[value]
