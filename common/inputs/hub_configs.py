"""Configurations of a Hub dataset: which of its files make up which split, by its card or else by their names.

The rules are those of `datasets` (https://huggingface.co/docs/hub/datasets-manual-configuration and
`datasets.data_files`), so a dataset has the same splits here as in `datasets.load_dataset`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from common.errors import UsageError

#: Words that name a split in the name of a file or a directory.
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SEPARATORS = "-._ 0-9"
_IN_DIRECTORY = ("**/{word}/**", "**/{word}[{sep}]*/**", "**/*[{sep}]{word}/**", "**/*[{sep}]{word}[{sep}]*/**")
_IN_FILE_NAME = ("**/{word}[{sep}]*", "**/*[{sep}]{word}[{sep}]*")
_SHARD = re.compile(r"^data/(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*$")
_CONVERTED = re.compile(r"^(?P<config>[^/]+)/(?:partial-)?(?P<split>[^/]+)/\d+\.parquet$")

Splits = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration of a dataset."""

    name: str
    splits: Splits  #: split -> paths of its files in the repository, in order
    default: bool = False  #: whether it is read where none is named

    def default_split(self) -> str | None:
        """Return the split that is read where none is named: `train`, or the only one; None if there is none."""
        if "train" in self.splits:
            return "train"
        return next(iter(self.splits)) if len(self.splits) == 1 else None


def card_metadata(card: str) -> dict[str, Any]:
    """Return the YAML metadata of a card; empty if it has none.

    Raises:
        ValueError: it is not valid.
    """
    if not card.startswith("---"):
        return {}
    from huggingface_hub import RepoCard

    try:
        found: dict[str, Any] = RepoCard(card).data.to_dict()
    except Exception as error:  # a boundary: each version of the library lets other errors of its parsers through
        raise ValueError(f"its metadata is not valid: {error}") from error
    return found


def card_configurations(card: str, paths: Sequence[str]) -> list[Configuration]:
    """Return the configurations that a dataset card declares (`configs`), in order; empty if it declares none.

    Args:
        card: the text of its README.md.
        paths: all files of the repository that hold records.

    Raises:
        ValueError: the card's metadata is not valid.
    """
    declared = card_metadata(card).get("configs") or []
    if not isinstance(declared, list):
        raise ValueError(f"configs: expected a list, found {declared!r:.80}")
    return [_declared(config, paths, single=len(declared) == 1) for config in declared]


def _declared(config: Any, paths: Sequence[str], *, single: bool) -> Configuration:
    if not isinstance(config, dict) or not isinstance(config.get("config_name"), str):
        raise ValueError(f"configs: expected a config_name, found {config!r:.80}")
    name, folder = config["config_name"], str(config.get("data_dir") or "").strip("/")
    prefix = f"{folder}/" if folder else ""
    inside = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    if config.get("data_files") is None:
        splits = default_splits(inside)
    else:
        splits = {split: matching(ones, inside) for split, ones in split_patterns(config["data_files"]).items()}
    default = single or name == "default" or bool(config.get("default"))
    return Configuration(name, {split: [prefix + path for path in found] for split, found in splits.items()}, default)


def split_patterns(data_files: Any) -> dict[str, list[str]]:
    """Return the patterns of each split of a configuration's `data_files`; without splits, all are `train`.

    Raises:
        ValueError: it is neither a pattern, a list of patterns, nor a list of objects with `split` and `path`.
    """
    if isinstance(data_files, str):
        return {"train": [data_files]}
    items: list[Any] = data_files if isinstance(data_files, list) else [None]
    if all(isinstance(item, str) for item in items):
        return {"train": items}
    found: dict[str, list[str]] = {}
    for item in items:
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(path, str | list) or not isinstance(item.get("split"), str):
            raise ValueError(f"data_files: expected patterns, or objects with split and path, found {item!r:.80}")
        found[item["split"]] = [path] if isinstance(path, str) else [str(one) for one in path]
    return found


def matching(patterns: Iterable[str], paths: Sequence[str]) -> list[str]:
    """Return the paths that match one of the patterns, in their order; hidden files only where a pattern says so."""
    from fsspec.utils import glob_translate

    found: dict[str, None] = {}
    for pattern in patterns:
        expression = re.compile(glob_translate(pattern))
        special = _special_parts(pattern)
        found |= dict.fromkeys(path for path in paths if expression.match(path) and _special_parts(path) == special)
    return list(found)


def _special_parts(path: str) -> tuple[int, int]:
    """Return how many parts are hidden, and how many directories begin with `__`."""
    parts = PurePosixPath(path).parts
    hidden = sum(part.startswith(".") and set(part) != {"."} for part in parts)
    return hidden, sum(part.startswith("__") for part in parts[:-1])


def default_splits(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the splits of files without a card by the names of their directories, else their own; else all `train`."""
    sharded: dict[str, list[str]] = {}
    for path in paths:
        if match := _SHARD.match(path):
            sharded.setdefault(match["split"], []).append(path)
    if sharded:
        return dict(sorted(sharded.items(), key=lambda item: (_rank(item[0]), item[0])))
    for patterns in (_IN_DIRECTORY, _IN_FILE_NAME):
        found = {split: matching(_of_words(patterns, words), paths) for split, words in _KEYWORDS.items()}
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    everything = matching(["**"], paths)
    return {"train": everything} if everything else {}


def _of_words(patterns: Sequence[str], words: Sequence[str]) -> list[str]:
    return [pattern.format(word=word, sep=_SEPARATORS) for word in words for pattern in patterns]


def _rank(split: str) -> int:
    names = list(_KEYWORDS)
    return names.index(split) if split in names else len(names)


def folder_configurations(paths: Sequence[str]) -> list[Configuration]:
    """Return a configuration for each directory with files named after splits: `cola/train.csv`, `sst2/test.csv`."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        parent, name = PurePosixPath(path).parent, PurePosixPath(path).name
        if any(matching(_of_words(_IN_FILE_NAME, words), [name]) for words in _KEYWORDS.values()):
            folders.setdefault(parent.name, []).append(path)
    folders.pop("", None)
    return [Configuration(name, default_splits(files)) for name, files in folders.items()]


def converted_configurations(paths: Sequence[str]) -> list[Configuration]:
    """Return the configurations of the branch with the Hub's conversion to Parquet, as CONFIG/SPLIT/0000.parquet."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        if match := _CONVERTED.match(path):
            found.setdefault(match["config"], {}).setdefault(match["split"], []).append(path)
    single = len(found) == 1
    return [Configuration(name, splits, default=single or name == "default") for name, splits in found.items()]


def choose_files(dataset: str, configurations: Sequence[Configuration], words: Sequence[str]) -> Sequence[str]:
    """Return the files of what `hf:DATASET:WORD:WORD` names: a configuration, a split, or both in this order.

    Args:
        dataset: ORG/NAME, for messages.
        configurations: those of the dataset, at least one.
        words: what follows the dataset, at most two.

    Raises:
        UsageError: there is no such configuration or split, or it is not clear which one is meant.
    """
    name = ":".join((f"hf:{dataset}", *words))
    by_name = {configuration.name: configuration for configuration in configurations}
    default = next((configuration for configuration in configurations if configuration.default), None)
    if len(words) == 2:
        return _files_of(name, dataset, by_name.get(words[0]), words[1], configurations)
    if not words:
        if default is None:
            raise UsageError(
                f"{name} has several configurations ({', '.join(by_name)}). Name one, for example "
                f"hf:{dataset}:{configurations[0].name}."
            )
        return _files_of(name, dataset, default, None, configurations)
    word = words[0]
    splits = default.splits if default else {}
    if word in by_name and word in splits and by_name[word] is not default:
        raise UsageError(
            f"{name}: {word!r} is a configuration of {dataset}, and a split of its default configuration "
            f"{default.name if default else ''!r}. Name both: hf:{dataset}:CONFIG:SPLIT."
        )
    if word in splits:
        return splits[word]
    if word not in by_name and default is None and any(word in one.splits for one in configurations):
        raise UsageError(
            f"{name} has several configurations ({', '.join(by_name)}). Name one before the split, for example "
            f"hf:{dataset}:{configurations[0].name}:{word}."
        )
    return _files_of(name, dataset, by_name.get(word), None, configurations)


def _files_of(
    name: str,
    dataset: str,
    configuration: Configuration | None,
    split: str | None,
    configurations: Sequence[Configuration],
) -> Sequence[str]:
    """Return the files of a split of a configuration; None: the default split."""
    chosen = split if split is not None or configuration is None else configuration.default_split()
    if configuration is not None and chosen is not None and chosen in configuration.splits:
        return configuration.splits[chosen]
    if configuration is not None and chosen is None and configuration.splits:
        raise UsageError(
            f"{name} has several splits ({', '.join(configuration.splits)}). Name one, for example "
            f"{name}:{next(iter(configuration.splits))}."
        )
    there = "; ".join(f"{one.name} ({', '.join(one.splits) or 'none'})" for one in configurations)
    raise UsageError(f"{name}: found no such configuration or split in {dataset}. Those it has: {there}.")
