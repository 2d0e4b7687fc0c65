"""Hub datasets as inputs: `hf:NAME[:SPLIT]` becomes the URLs of its files.

Files are found by name, which is what `datasets` does by default. Datasets without table files, or made by a script,
are read from the Parquet branch that the Hub creates for every dataset.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from common.errors import StorageError, UsageError
from common.storage.filesystem import open_filesystem, storage_errors

PREFIX = "hf:"
#: The branch with the Hub's conversion of a dataset, as CONFIG/SPLIT/0000.parquet.
_CONVERTED = "@refs%2Fconvert%2Fparquet"
_SOURCE = re.compile(r"^hf:(?!.*\.\.)([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.-]+))?$", re.ASCII)
_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".txt.gz")


def is_hub_dataset(name: str) -> bool:
    """Whether an input names a Hub dataset; `hf://...` is a URL."""
    return name.startswith(PREFIX) and not name.startswith(f"{PREFIX}//")


def dataset_files(name: str) -> list[str]:
    """Return the URLs of the files of `hf:NAME[:SPLIT]`, in order; the default split is `train`.

    Raises:
        UsageError: the name is malformed, the dataset or split does not exist, or it has several configurations.
    """
    match = _SOURCE.match(name)
    if match is None:
        raise UsageError(f"{name!r} is not a Hub dataset: expected hf:ORG/NAME or hf:ORG/NAME:SPLIT.")
    dataset, split = match[1], match[2] or "train"
    base = f"hf://datasets/{dataset}"
    files = _listed(base)
    if files is None:
        raise UsageError(f"{name}: the Hub has no dataset {dataset}, or this HF_TOKEN has no access to it.")
    found = _of_split(files, split) or _of_split(_listed(base + _CONVERTED) or [], split)
    if not found:
        raise UsageError(
            f"{name}: found no file for split {split!r} in {dataset}. Pass the files, for example {base}/FILE."
        )
    _check_one_configuration(name, base, found)
    return found


def _listed(base: str) -> list[str] | None:
    """Return the URLs of all record files under `base`; None if it does not exist."""
    try:
        with storage_errors("read", base):
            files, path = open_filesystem(base)
            files.invalidate_cache()  # cached listings of single folders would be taken for the whole
            found = files.find(path)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UsageError(error.message) from error
    prefix = len(path)
    return [base + name[prefix:] for name in sorted(found) if name.endswith(_SUFFIXES)]


def _of_split(files: Sequence[str], split: str) -> list[str]:
    named = re.compile(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)")
    inside = {name: name.removeprefix("hf://datasets/").split("/", 2)[2] for name in files}
    found = [name for name, path in inside.items() if named.search(path)]
    some_split = re.compile(r"(^|[/_.-])(train|test|valid|validation|dev|eval)([/_.-]|$)")
    if not found and split == "train" and not any(some_split.search(path) for path in inside.values()):
        return list(files)  # no file names a split: the whole dataset is one
    return found


def _check_one_configuration(name: str, base: str, files: Sequence[str]) -> None:
    folders = sorted({str(PurePosixPath(file.removeprefix("hf://datasets/")).parent) for file in files})
    if len(folders) > 1:
        shown = ", ".join(folder.rpartition("/")[2] for folder in folders[:8])
        raise UsageError(
            f"{name} has several configurations ({shown}). Pass the files of one, for example {base}/FOLDER/*."
        )
