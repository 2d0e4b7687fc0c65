"""Data sets of the Hugging Face hub as inputs: `hf:NAME[:SPLIT]` becomes the addresses of its files.

The files are found by their names, as `datasets` does it where a data set says nothing else; those that hold no table
(or that a script makes) are found in the branch of Parquet files that the hub makes of every data set.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from common.errors import StorageError, UsageError
from common.storage.filesystem import open_filesystem, storage_errors

PREFIX = "hf:"
#: Where the hub keeps what it made of a data set, as CONFIG/SPLIT/0000.parquet.
_CONVERTED = "@refs%2Fconvert%2Fparquet"
_SOURCE = re.compile(r"^hf:(?!.*\.\.)([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.-]+))?$", re.ASCII)
_SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".txt.gz")


def is_hub_dataset(name: str) -> bool:
    """Whether an input is named as a data set of the hub; `hf://...` is an address."""
    return name.startswith(PREFIX) and not name.startswith(f"{PREFIX}//")


def dataset_files(name: str) -> list[str]:
    """Return the addresses of the files of `hf:NAME[:SPLIT]`, in order; the split is `train` if none is named.

    Raises:
        UsageError: it is not written so, or there is no such data set or split, or it has several configurations.
    """
    match = _SOURCE.match(name)
    if match is None:
        raise UsageError(f"{name!r} names no data set of the hub: expected hf:ORG/NAME or hf:ORG/NAME:SPLIT.")
    data_set, split = match[1], match[2] or "train"
    base = f"hf://datasets/{data_set}"
    files = _listed(base)
    if files is None:
        raise UsageError(f"{name}: there is no data set {data_set} on the hub, or it is not open to this HF_TOKEN.")
    found = _of_split(files, split) or _of_split(_listed(base + _CONVERTED) or [], split)
    if not found:
        raise UsageError(f"{name}: no file of {data_set} seems to be its split {split!r}. Name files, as {base}/FILE.")
    _check_one_configuration(name, base, found)
    return found


def _listed(base: str) -> list[str] | None:
    """Return the addresses of all files with records under `base`; None where there is nothing."""
    try:
        with storage_errors("read", base):
            files, path = open_filesystem(base)
            files.invalidate_cache()  # listings of single folders, kept since, would stand for the whole
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
        return list(files)  # nothing is split: all of it is there to be used
    return found


def _check_one_configuration(name: str, base: str, files: Sequence[str]) -> None:
    folders = sorted({str(PurePosixPath(file.removeprefix("hf://datasets/")).parent) for file in files})
    if len(folders) > 1:
        shown = ", ".join(folder.rpartition("/")[2] for folder in folders[:8])
        raise UsageError(f"{name} has several configurations ({shown}). Name the files of one, as {base}/FOLDER/*.")
