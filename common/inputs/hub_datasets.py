"""Hub datasets as inputs: `hf:ORG/NAME[:CONFIG][:SPLIT]` becomes the URLs of its files.

The card says which files make up a configuration and a split; without a card, their names do, which is what `datasets`
does by default. Datasets without table files, or made by a script, are read from the Parquet branch that the Hub
creates for every dataset.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from common.errors import StorageError, UsageError
from common.inputs.hub_configs import (
    Configuration,
    card_configurations,
    choose_files,
    converted_configurations,
    default_splits,
    folder_configurations,
)
from common.storage.filesystem import open_filesystem, storage_errors

PREFIX = "hf:"
#: The branch with the Hub's conversion of a dataset, as CONFIG/SPLIT/0000.parquet.
_CONVERTED = "@refs%2Fconvert%2Fparquet"
_SOURCE = re.compile(r"^hf:(?!.*\.\.)([\w-][\w.-]*/[\w-][\w.-]*)((?::[\w.-]+){0,2})$", re.ASCII)
_CARD = "README.md"
_TABLES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".txt.gz")
#: What only a card can name: repositories hold other files of these formats too.
_NAMED = (*_TABLES, ".json", ".json.gz", ".ndjson", ".ndjson.gz")


def is_hub_dataset(name: str) -> bool:
    """Whether an input names a Hub dataset; `hf://...` is a URL."""
    return name.startswith(PREFIX) and not name.startswith(f"{PREFIX}//")


def dataset_files(name: str) -> list[str]:
    """Return the URLs of the files of `hf:ORG/NAME[:CONFIG][:SPLIT]`, in order.

    One word after the dataset is a configuration or a split of the default configuration. The default split is
    `train`, or the only one there is.

    Raises:
        UsageError: the name is malformed; the dataset, the configuration or the split does not exist; it is not clear
            which one is meant; or the card is damaged.
    """
    match = _SOURCE.match(name)
    if match is None:
        raise UsageError(
            f"{name!r} is not a Hub dataset: expected hf:ORG/NAME or hf:ORG/NAME:SPLIT, or hf:ORG/NAME:CONFIG:SPLIT."
        )
    dataset, words = match[1], match[2].split(":")[1:]
    base = f"hf://datasets/{dataset}"
    paths = _listed(base)
    if paths is None:
        raise UsageError(f"{name}: the Hub has no dataset {dataset}, or this HF_TOKEN has no access to it.")
    configurations = _declared(name, base, paths)
    tables = [path for path in paths if path.endswith(_TABLES)]
    found: Sequence[str] = ()
    if any(configuration.splits for configuration in configurations):
        found = choose_files(dataset, configurations, words)
    elif not configurations:
        found = _by_names(name, dataset, tables, words)
    return [f"{base}/{path}" for path in found] or _converted(name, dataset, words, tables)


def _declared(name: str, base: str, paths: Sequence[str]) -> list[Configuration]:
    """Return the configurations of the dataset's card."""
    if _CARD not in paths:
        return []
    try:
        with storage_errors("read", f"{base}/{_CARD}"):
            files, path = open_filesystem(base)
            card = files.cat_file(f"{path}/{_CARD}").decode("utf-8", "replace")
        return card_configurations(card, [path for path in paths if path.endswith(_NAMED)])
    except StorageError as error:
        raise UsageError(error.message) from error
    except ValueError as error:
        raise UsageError(
            f"{name}: {base}/{_CARD}: {error}. Name the files instead, for example {base}/FILE."
        ) from error


def _by_names(name: str, dataset: str, tables: Sequence[str], words: Sequence[str]) -> Sequence[str]:
    """Return the files that directories and file names show to be what was named; empty if there are none."""
    splits = default_splits(tables)
    folders = folder_configurations(tables)
    if words and words[0] not in splits and any(words[0] == folder.name for folder in folders):
        return choose_files(dataset, folders, words)
    if len(words) == 2:
        return []
    split = words[0] if words else next(iter(splits)) if len(splits) == 1 else "train"
    found = splits.get(split) or _with_word(tables, split)
    parents = sorted({str(PurePosixPath(path).parent) for path in found})
    if len(parents) > 1:
        shown = ", ".join(parent.rpartition("/")[2] for parent in parents[:8])
        raise UsageError(
            f"{name} has several configurations ({shown}). Name one, or pass its files, for example "
            f"hf://datasets/{dataset}/FOLDER/*."
        )
    return found


def _with_word(paths: Sequence[str], word: str) -> list[str]:
    named = re.compile(rf"(^|[/_.-]){re.escape(word)}([/_.-]|$)")
    return [path for path in paths if named.search(path)]


def _converted(name: str, dataset: str, words: Sequence[str], tables: Sequence[str]) -> list[str]:
    """Return the URLs of the files in the Hub's conversion to Parquet; `tables` are those that were not named."""
    base = f"hf://datasets/{dataset}{_CONVERTED}"
    configurations = converted_configurations(_listed(base) or [])
    if configurations:
        return [f"{base}/{path}" for path in choose_files(dataset, configurations, words)]
    there = ", ".join(default_splits(tables))
    raise UsageError(
        f"{name}: found no file for split {':'.join(words) or 'train'!r} in {dataset}"
        + (f", which has {there}" if there else "")
        + f". Pass the files, for example hf://datasets/{dataset}/FILE."
    )


def _listed(base: str) -> list[str] | None:
    """Return the paths of all files under `base`, in order; None if it does not exist."""
    try:
        with storage_errors("read", base):
            files, path = open_filesystem(base)
            files.invalidate_cache()  # cached listings of single folders would be taken for the whole
            found = files.find(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UsageError(error.message) from error
    return [name[len(path) + 1 :] for name in sorted(found)]
