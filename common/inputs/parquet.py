"""Records of `.parquet`, a batch of rows at a time; only the columns that records are made of are read."""

import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.encoder import to_json
from common.errors import UsageError, first_line
from common.files.access import open_stream
from common.inputs.lines import oversized
from common.inputs.making import RecordMaker
from common.inputs.sources import Source, faults
from common.shared import is_address
from common.values import Failure, Json, Record

_BATCH_ROWS = 1024


def parquet_records(make: RecordMaker, max_bytes: int) -> Iterator[Record]:
    """Yield a record for each row.

    Raises:
        UsageError: the file cannot be read, or lacks a column that is needed.
    """
    with faults(make.source), _open(make.source) as file:
        make = make.with_columns(file.schema_arrow.names)
        names = make.columns(file.schema_arrow.names)
        yield from records_of_batches(make, _batches(make.source, file, names), max_bytes)


def records_of_batches(make: RecordMaker, batches: Iterable[Any], max_bytes: int, first: int = 0) -> Iterator[Record]:
    """Yield a record for each row of some Arrow batches; `first` is the number of the first row in its file."""
    number = first
    for batch in batches:
        names = batch.schema.names
        columns = [_values(batch.column(name)) for name in names]
        for cells in zip(*columns, strict=True):
            yield _record(make, number, dict(zip(names, cells, strict=True)), max_bytes)
            number += 1


class _Undecodable:
    """Stands for a cell whose text is not UTF-8."""


@contextmanager
def _open(source: Source) -> Iterator[Any]:
    with ExitStack() as stack:
        where: str | IO[bytes] = source.name
        if is_address(source.name):
            where = stack.enter_context(open_stream(source.name))
        elif not source.rereadable:  # Parquet begins at its end, and a pipe cannot be wound back
            where = stack.enter_context(tempfile.TemporaryFile())
            _spool(source, where)
        try:
            file = pq.ParquetFile(where)
        except pa.ArrowException as error:
            raise UsageError(f"{source.label} is not a Parquet file: {first_line(error)}") from error
        with file:
            yield file


def _spool(source: Source, target: IO[bytes]) -> None:
    if source.is_stdin:
        shutil.copyfileobj(sys.stdin.buffer, target)
    else:
        with open(source.name, "rb") as stream:  # noqa: PTH123 - a pipe, which Path would open no differently
            shutil.copyfileobj(stream, target)
    target.seek(0)


def _batches(source: Source, file: Any, names: Sequence[str]) -> Iterator[Any]:
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(names), use_threads=False):
            if source.reading and source.reading.size:
                rows = file.metadata.num_rows
                source.reading.read += Path(source.name).stat().st_size * len(batch) // rows
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{source.label} is damaged: {first_line(error)}") from error


def _values(column: Any) -> list[Json]:
    """Return the cells as Python values; those that are not UTF-8 are marked, one by one."""
    if pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type):
        column = column.cast(pa.string())  # Python has no nanoseconds, JSON neither dates nor decimals
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_cell(scalar) for scalar in column]
    return [_json_value(value) for value in values]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _Undecodable()


def _json_value(value: Any) -> Json:
    """Return the value in terms of JSON: bytes are text, NaN is nothing, what JSON lacks is its text."""
    match value:
        case None | str() | bool() | int() | _Undecodable():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return _text_of(value)
        case dict():
            return {str(key): _json_value(item) for key, item in value.items()}
        case list() | tuple():
            return [_json_value(item) for item in value]
    return str(value)


def _text_of(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _Undecodable()


def _record(make: RecordMaker, number: int, row: dict[str, Json], max_bytes: int) -> Record:
    bad = [name for name, value in row.items() if _holds_undecodable(value)]
    if bad:
        failure = Failure("bad_encoding", f"{make.source.place(number + 1)}: the column {bad[0]!r} is not UTF-8")
        return make.failed(number, failure, {k: v for k, v in row.items() if k not in bad})
    if sum(map(_size, row.values())) > max_bytes:
        return make.failed(number, oversized(make.source, number, max_bytes), None)
    return make.record(number, number + 1, row)


def _holds_undecodable(value: Json) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(_holds_undecodable(item) for item in value)
    return isinstance(value, _Undecodable)


def _size(value: Json) -> int:
    """Return about how many bytes the value takes as text."""
    text = value if isinstance(value, str) else to_json(value)
    return len(text) if text.isascii() else len(text.encode())
