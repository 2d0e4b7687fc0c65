"""Output formats: the writer for a file's extension, and checks that the file can be written."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError, path_errors
from common.jobs import JobSpec
from common.output_types import OutputForm
from common.own_columns import Columns
from common.results import ResultLayout
from common.storage.locations import local_path
from common.tasks import declared_output
from producer.outputs.media_files import MediaFilesWriter
from producer.outputs.text import CsvWriter, JsonLinesWriter
from producer.outputs.writer import Writer

FORMATS = ("jsonl", "csv", "parquet", "npy")

_GZIPPED = ("jsonl", "csv")
_EXTENSIONS = (*(f".{name}" for name in FORMATS), *(f".{name}.gz" for name in _GZIPPED))


def open_output(
    path: Path,
    spec: JobSpec,
    columns: Columns,
    *,
    output_type: Any = None,
    csv_safe: bool = False,
    media_files: bool = False,
) -> Writer:
    """Return the writer for the path's extension, a context manager.

    Args:
        path: the file to write.
        spec: of the job.
        columns: the own columns of its records, and their types.
        output_type: Arrow type of the outputs, None where they have none; for CSV and Parquet.
        csv_safe: escape CSV cells that a spreadsheet would run as formulas.
        media_files: write images and sound to files beside it.

    Raises:
        UsageError: the extension is unknown, or does not suit the outputs.
        ColumnMisfit: while writing, a value is not of its column's type; begin again with wider columns.
    """
    layout = ResultLayout.of(spec)
    if media_files:
        return MediaFilesWriter(path, layout)
    # pyarrow and numpy are imported only if they are needed.
    match _format_of(path, declared_output(spec)):
        case "jsonl":
            return JsonLinesWriter(path, layout)
        case "csv":
            return CsvWriter(path, layout, columns, output_type, safe=csv_safe)
        case "npy":
            from producer.outputs.npy import NpyWriter

            return NpyWriter(path, declared_output(spec))
    from common.payloads.result_tables import ResultTable
    from producer.outputs.parquet import ParquetWriter

    return ParquetWriter(path, ResultTable(layout, columns, output_type))


def is_file_name(name: str) -> bool:
    """Return whether a name has the extension of a file that can be written."""
    return name.lower().endswith(_EXTENSIONS)


def is_csv(path: Path) -> bool:
    """Return whether a file of that name is CSV."""
    return path.name.lower().endswith((".csv", ".csv.gz"))


def is_typed(path: Path) -> bool:
    """Return whether what is written to a file of that name depends on the type of the outputs."""
    return is_csv(path) or path.suffix.lower() == ".parquet"


def check_output(path: Path, form: OutputForm | None, inputs: Sequence[str] = ()) -> None:
    """Check that the file can be written, without changing anything.

    Raises:
        UsageError: its extension is unknown or does not suit the outputs, its directory is missing or not writable,
            there is something else at the path, or it is one of the inputs.
    """
    _format_of(path, form)
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


def _format_of(path: Path, form: OutputForm | None) -> str:
    gzipped = path.suffix.lower() == ".gz"
    format = (Path(path.stem) if gzipped else path).suffix.lower().removeprefix(".")
    if format not in (_GZIPPED if gzipped else FORMATS):
        raise UsageError(f"{path} has no extension of a known format; expected one of {', '.join(_EXTENSIONS)}.")
    if format == "npy" and form is not None and not form.is_vector:
        raise UsageError(
            f"{path}: .npy holds one vector per record, such as embedding gives; an output of this task is {form}. "
            "Write .jsonl, .csv or .parquet instead."
        )
    return format
