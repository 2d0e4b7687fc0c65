"""Output formats: the writer for a file's extension, and checks that the file can be written."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError, path_errors
from common.storage.locations import local_path
from common.tasks import TASKS, Task
from producer.outputs.text import CsvWriter, JsonLinesWriter
from producer.outputs.writer import Writer

FORMATS = ("jsonl", "csv", "parquet", "npy")

_GZIPPED = ("jsonl", "csv")
_EXTENSIONS = (*(f".{name}" for name in FORMATS), *(f".{name}.gz" for name in _GZIPPED))
#: Built-in tasks whose output is one vector; runners of other tasks may return vectors too.
_VECTOR_TASKS = ("embedding",)


def open_output(path: Path, task: Task, *, output_type: Any = None, csv_safe: bool = False) -> Writer:
    """Return the writer for the path's extension, a context manager.

    Args:
        path: the file to write.
        task: the task of the job.
        output_type: Arrow type of the outputs, if the runner declares one; for Parquet.
        csv_safe: escape CSV cells that a spreadsheet would run as formulas.

    Raises:
        UsageError: the extension is unknown, or does not suit the task.
    """
    # pyarrow and numpy are imported only if they are needed.
    match _format_of(path, task):
        case "jsonl":
            return JsonLinesWriter(path)
        case "csv":
            return CsvWriter(path, safe=csv_safe)
        case "npy":
            from producer.outputs.npy import NpyWriter

            return NpyWriter(path)
    from producer.outputs.parquet import ParquetWriter

    return ParquetWriter(path, output_type)


def is_file_name(name: str) -> bool:
    """Return whether a name has the extension of a file that can be written."""
    return name.lower().endswith(_EXTENSIONS)


def is_csv(path: Path) -> bool:
    """Return whether a file of that name is CSV."""
    return path.name.lower().endswith((".csv", ".csv.gz"))


def check_output(path: Path, task: Task, inputs: Sequence[str] = ()) -> None:
    """Check that the file can be written, without changing anything.

    Raises:
        UsageError: its extension is unknown or does not suit the task, its directory is missing or not writable, there
            is something else at the path, or it is one of the inputs.
    """
    _format_of(path, task)
    check_writable(path)
    for name in inputs:
        if name != "-" and local_path(name).resolve() == path.resolve():
            raise UsageError(f"{path} is also an input and would be overwritten. Choose another output file.")


def check_writable(path: Path) -> None:
    """Check that a file can be written at this path, without changing anything.

    Raises:
        UsageError: its directory is missing or not writable, or there is something else at the path.
    """
    with path_errors(f"{path} cannot be written"):
        target = path.resolve()
        if target.is_dir():
            raise UsageError(f"{path} is a directory; name a file in it.")
        if target.exists() and not target.is_file():
            raise UsageError(f"{path} is not a regular file; to write to a pipe, omit -o.")
        if not target.parent.is_dir():
            raise UsageError(f"There is no directory {path.parent}; create it first, or write elsewhere.")
        with tempfile.TemporaryFile(dir=target.parent):  # has no name, where the system allows that
            pass


def _format_of(path: Path, task: Task) -> str:
    gzipped = path.suffix.lower() == ".gz"
    format = (Path(path.stem) if gzipped else path).suffix.lower().removeprefix(".")
    if format not in (_GZIPPED if gzipped else FORMATS):
        raise UsageError(f"{path} has no extension of a known format; expected one of {', '.join(_EXTENSIONS)}.")
    if format == "npy" and task.name in TASKS and task.name not in _VECTOR_TASKS:
        raise UsageError(
            f"{path}: .npy holds one vector per record, but {task.name} does not return vectors; only "
            f"{' and '.join(_VECTOR_TASKS)} does. Write .jsonl, .csv or .parquet instead."
        )
    return format
