"""Training data: the examples of a run, from payload files or from a dataset on the Hub, and their labels."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from common.errors import ModelError, UsageError, WorkerError, first_line
from common.payloads.codec import decode_records
from common.records import Json
from common.template import TEMPLATE_FIELD
from common.training.examples import choose_columns, is_empty, make_example
from common.training.kinds import PAIR_TASKS, Example
from common.training.labels import Labels, check_labels_known, infer_labels, split_train_eval
from common.training.options import HUB_PREFIX, TrainingOptions
from workers.disk_space import DISK_FULL_ERRNOS
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.hub_template import HubTemplate, class_names

#: What the Hub's HTTP client raises without a network, by name: the client differs between versions of the Hub.
_TRANSPORT_ERROR = "TransportError"
#: A configuration and a split, which may be a slice.
_CONFIGURED = re.compile(r"([\w.+-]+):(.+)\Z")
#: HTTP statuses below 500 that are transient: request timeout, too many requests.
_TRANSIENT_STATUSES = (408, 429)


class Examples:
    """The examples to train on (`train`) and to evaluate on (`eval`), and their labels."""

    def __init__(self, config: TrainingRunConfig) -> None:
        options, task = config.options, config.job.task
        self.notes: list[str] = []
        self.train = self._load(task, options, options.train_source, config.example_files.get("train", ()))
        self.eval = self._load(task, options, options.eval_source, config.example_files.get("eval", ()))
        self.labels = self._find_labels(task, options)
        self.notes += self.labels.warnings
        if self.eval:
            check_labels_known(self.labels, self.eval, options.eval_source or "the evaluation set")
        elif options.eval_split:
            parts = split_train_eval(self.labels, self.train, options.eval_split, options.seed)
            self.train, self.eval, notes = parts
            self.notes += notes

    def remove(self, name: str, numbers: Iterable[int]) -> None:
        """Remove the examples with these numbers from a set, "train" or "eval"."""
        unwanted = frozenset(numbers)
        setattr(self, name, [example for number, example in enumerate(getattr(self, name)) if number not in unwanted])

    def _find_labels(self, task: str, options: TrainingOptions) -> Labels:
        """Return the labels that the producer found, for a training set without its held-out part may lack some."""
        if options.labels is not None:
            check_labels_known(options.labels, self.train, "the training set")
            return options.labels
        labels = infer_labels(task, self.train)
        if options.train_source and labels.description:  # for files, the producer has printed it
            self.notes.append(labels.description)
        return labels

    def _load(self, task: str, options: TrainingOptions, source: str | None, files: Sequence[str]) -> list[Example]:
        if source is None:
            return [record.input for file in files for record in decode_records(Path(file).read_bytes())]
        examples = list(_load_from_hub(task, options, source))
        kept: list[Example] = [example for example in examples if not is_empty(example)]
        if len(kept) < len(examples):
            self.notes.append(f"{source}: {len(examples) - len(kept):,} empty texts are left out.")
        return kept


def to_dataset(columns: Mapping[str, list[Any]]) -> Any:
    """Return tokenized examples as Trainer takes them, with their lengths for grouping."""
    lengths = columns.get("length") or [len(ids) for ids in columns["input_ids"]]
    return datasets.Dataset.from_dict({**columns, "length": lengths})


def _load_from_hub(task: str, options: TrainingOptions, source: str) -> Iterator[dict[str, Json]]:
    """Yield the examples of a dataset on the Hub, which describes its own columns and classes."""
    name, _, part = source.removeprefix(HUB_PREFIX).partition(":")
    dataset = _download(name, part or "train")
    template = HubTemplate.of(options.template, dataset, source) if options.template else None
    text, label = choose_columns(
        task, dataset.column_names, options.text_column, options.label_column, templated=template is not None
    )
    names = () if task in PAIR_TASKS else class_names(dataset, label)  # of pairs, a class is its number
    for number, row in enumerate(dataset):
        try:
            named = {**row, label: _class_name(row[label], names)} if names and label else dict(row)
            if template:
                named[TEMPLATE_FIELD] = template.render(row)
            yield make_example(task, named, text, label)
        except UsageError as error:
            raise UsageError(f"{source} row {number + 1}: {error}") from error


def _download(name: str, part: str) -> Any:
    try:
        return _load_part(name, part)
    except Exception as error:  # errors of the Hub, the file system and the formats have no common base class
        message = f"hf:{name}:{part} cannot be loaded: {first_line(error)}"
        if _is_local(error):
            full = isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
            raise WorkerError("disk_full" if full else "hub_unavailable", message) from error
        raise ModelError("dataset_not_found", message) from error


def _load_part(name: str, part: str) -> Any:
    """Return `SPLIT`, `CONFIGURATION` (its `train`) or `CONFIGURATION:SPLIT`; a split may be a slice, `train[:9%]`."""
    if match := _CONFIGURED.match(part):
        return datasets.load_dataset(name, match[1], split=match[2])
    try:
        return datasets.load_dataset(name, split=part)
    except ValueError:  # it has no such split, or several configurations
        if part not in _configurations(name):
            raise
    return datasets.load_dataset(name, part, split="train")


def _configurations(name: str) -> Sequence[str]:
    """Return the names of a dataset's configurations; none if they cannot be listed."""
    try:
        return list(datasets.get_dataset_config_names(name))
    except (OSError, ValueError):
        return ()


def _is_local(error: BaseException | None) -> bool:
    """Whether the network or the disk caused it, so that another worker or a retry may succeed."""
    while error is not None:
        if isinstance(error, FileNotFoundError) or _is_permanent_response(error):  # there is no such dataset
            return False
        if isinstance(error, OSError) or _TRANSPORT_ERROR in (kind.__name__ for kind in type(error).__mro__):
            return True
        error = error.__cause__
    return False


def _is_permanent_response(error: BaseException) -> bool:
    """Whether a server answered with a status that will not change; the Hub's HTTP errors are `OSError` too."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_STATUSES


def _class_name(value: Json, names: Sequence[str]) -> Json:
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UsageError(f"a label must be a number from 0 to {len(names) - 1}, found {value}: the row has no label")
    return names[value]
