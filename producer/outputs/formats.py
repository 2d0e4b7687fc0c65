"""From a path to its writer, and whether it can be written, before any work."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError, path_errors
from common.storage.locations import local_path
from common.tasks import TASKS, Task
from producer.outputs.npy import NpyWriter
from producer.outputs.text import CsvWriter, JsonLinesWriter
from producer.outputs.writer import Writer

FORMATS = ("jsonl", "csv", "parquet", "npy")

_GZIPPED = ("jsonl", "csv")
#: Of the tasks known here, those whose output is one vector; a runner of others may give vectors too.
_VECTOR_TASKS = ("embedding",)


def open_output(path: Path, task: Task, *, output_type: Any = None, csv_safe: bool = False) -> Writer:
    """Return the writer for the path's extension, a context manager.

    Args:
        path: where the file will stand once it is whole.
        task: what the outcomes are of.
        output_type: the Arrow type of the outputs where the runner declares one; for Parquet.
        csv_safe: whether cells of CSV that a spreadsheet would run are escaped.

    Raises:
        UsageError: the extension is unknown, or does not go with the task.
    """
    match _format_of(path, task):
        case "jsonl":
            return JsonLinesWriter(path)
        case "csv":
            return CsvWriter(path, safe=csv_safe)
        case "npy":
            return NpyWriter(path)
    from producer.outputs.parquet import ParquetWriter

    return ParquetWriter(path, output_type)


def is_file_name(name: str) -> bool:
    """Whether a name ends as that of a file which can be written."""
    return name.lower().endswith(tuple([*(f".{f}" for f in FORMATS), *(f".{f}.gz" for f in _GZIPPED)]))


def is_csv(path: Path) -> bool:
    """Return whether a file of that name is CSV."""
    return path.name.lower().endswith((".csv", ".csv.gz"))


def check_output(path: Path, task: Task, inputs: Sequence[str] = ()) -> None:
    """Check that the file can be written there, touching nothing.

    Raises:
        UsageError: its extension is unknown or does not go with the task, its directory is missing or may not be
            written, something else is in its place, or it is one of the inputs.
    """
    _format_of(path, task)
    check_writable(path)
    for name in inputs:
        if name != "-" and local_path(name).resolve() == path.resolve():
            raise UsageError(f"{path} is an input; writing there would destroy it. Name another file.")


def check_writable(path: Path) -> None:
    """Check that a file can be written there, touching nothing.

    Raises:
        UsageError: its directory is missing or may not be written, or something else is in its place.
    """
    with path_errors(f"{path} cannot be written"):
        _check_place(path, path.resolve())


def _check_place(path: Path, target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{path} is a directory; name a file in it.")
    if target.exists() and not target.is_file():
        raise UsageError(f"{path} is no regular file; to write to a pipe, leave -o out.")
    if not target.parent.is_dir():
        raise UsageError(f"There is no directory {path.parent}; make it first, or write elsewhere.")
    with tempfile.TemporaryFile(dir=target.parent):  # without a name where the system can: nothing is touched
        pass


def _format_of(path: Path, task: Task) -> str:
    gzipped = path.suffix.lower() == ".gz"
    format = (Path(path.stem) if gzipped else path).suffix.lower().removeprefix(".")
    if format not in (_GZIPPED if gzipped else FORMATS):
        known = ", ".join([*(f".{f}" for f in FORMATS), *(f".{f}.gz" for f in _GZIPPED)])
        raise UsageError(f"{path} has no extension that says how to write it; known are {known}.")
    if format == "npy" and task.name in TASKS and task.name not in _VECTOR_TASKS:
        raise UsageError(
            f"{path}: .npy holds one vector for each record, which {task.name} does not give; "
            f"{' and '.join(_VECTOR_TASKS)} does. Write .jsonl, .csv or .parquet."
        )
    return format
