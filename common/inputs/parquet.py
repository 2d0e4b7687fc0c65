"""Parquet records, read in slices; only the columns that records are built from are read.

Slices are cut by bytes, not by rows: a page of a few bytes can stand for gigabytes of text.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import UsageError, first_line
from common.inputs.arrow_rows import ArrowRow, ArrowRows, is_file_column, kept_rows
from common.inputs.arrow_values import contains_undecodable, json_values, row_sizes
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source, read_errors
from common.inputs.text import too_large_failure
from common.json_codec import to_json
from common.media_types import HEAD_BYTES, LFS_POINTER, detect_format
from common.own_columns import KEEP_NONE
from common.records import Failure, Json, Record
from common.storage.filesystem import open_stream
from common.storage.locations import is_url
from common.tasks import Task

_BATCH_ROWS = 1024
#: Bytes of text that are converted to Python values at once.
_SLICE_BYTES = 8 * 1024**2
#: Columns with a longer value are read as dictionaries: a batch of references to it could otherwise fill the memory.
_LONG_VALUE = 64 * 1024
#: Bytes of a batch if the file does not say how long its texts are.
_BATCH_BYTES = 64 * 1024**2
#: Longest column that is shown of a row that is too large, in bytes.
_ECHO_BYTES = 200


def parquet_records(builder: RecordBuilder, max_bytes: int) -> Iterator[Record]:
    """Yield a record for each row.

    Raises:
        UsageError: the file cannot be read, or lacks a required column.
    """
    with read_errors(builder.source), _open(builder.source) as (where, file):
        schema = file.schema_arrow
        builder = builder.with_columns(schema.names)
        names = builder.read_columns(schema.names)
        yield from records_of_batches(builder, _batches(builder.source, where, file, names), max_bytes, schema=schema)


def records_of_batches(
    builder: RecordBuilder,
    batches: Iterable[Any],
    max_bytes: int,
    *,
    schema: Any = None,
    first: int = 0,
    max_total_bytes: int | None = None,
) -> Iterator[Record]:
    """Yield a record for each row of Arrow batches.

    Args:
        builder: builds records from rows.
        batches: with the columns that records are built from, and those that they keep.
        max_bytes: of a record; a longer one fails and is not converted.
        schema: of the source, whose types are kept; None: that of each batch.
        first: the number of the first row in its file.
        max_total_bytes: of all rows together; rows beyond that fail as too large.
    """
    number, left = first, max_total_bytes
    plain = replace(builder, keep=KEEP_NONE)  # the records get their columns as rows of Arrow
    slice_bytes = min(_SLICE_BYTES, max_total_bytes // 8) if max_total_bytes else _SLICE_BYTES
    for batch in batches:
        names = _class_names(batch.schema)
        needed = builder.columns(batch.schema.names)
        files = _file_columns(builder.task, batch.schema)
        for part, size in _slices(batch, slice_bytes, max_bytes):
            fits = size <= max_bytes or len(part) > 1
            own = kept_rows(part, builder.keep, schema or batch.schema, files=files)
            if not fits or (left is not None and size > left):
                records = _too_large(builder, number, _without_long_columns(part), max_bytes, whole=not fits)
                own = ArrowRows(_without_long_columns(own.batch), own.types) if own else None
            else:
                left = None if left is None else left - size
                rows = enumerate(_rows(builder, number, part.select(needed), names, files), number)
                maker = _with_file_field(plain, part, files)
                records = (_record(maker, at, row, blob, max_bytes) for at, (row, blob) in rows)
            for at, record in enumerate(records):
                yield record if own is None else replace(record, own=ArrowRow(own, at))
            number += len(part)


def _slices(batch: Any, slice_bytes: int, max_bytes: int) -> Iterator[tuple[Any, int]]:
    """Yield slices of the batch with their bytes: several small rows, or a single large one."""
    sizes = sum((row_sizes(column) for column in batch.columns), np.zeros(len(batch), np.int64))
    ends = np.cumsum(sizes)
    start = done = 0
    while start < len(batch):
        fitting = int(np.searchsorted(ends, done + slice_bytes, side="right"))
        large = np.flatnonzero(sizes[start:fitting] > max_bytes)
        if len(large):
            fitting = start + int(large[0])
        end = max(fitting, start + 1)
        yield batch.slice(start, end - start), int(ends[end - 1]) - done
        start, done = end, int(ends[end - 1])


def _too_large(builder: RecordBuilder, number: int, part: Any, max_bytes: int, *, whole: bool) -> Iterator[Record]:
    """Yield the failures of rows that are not converted, with their short columns, such as the id."""
    names = part.schema.names
    columns = list(map(json_values, part.columns))
    for row in range(len(part)):
        failure = too_large_failure(builder.source, number + row, max_bytes)
        if not whole:
            what = "the chunk is full before this row; use a smaller --chunk-size"
            failure = Failure("too_large", f"{builder.source.location(number + row + 1)}: {what}")
        cells = zip(names, (column[row] for column in columns), strict=True)
        echo = {name: value for name, value in cells if value is not None and not contains_undecodable(value)}
        yield builder.failed(number + row, failure, echo or None)


def _without_long_columns(part: Any) -> Any:
    """Return the batch with nulls for columns that have a long value."""
    short = [(row_sizes(column) <= _ECHO_BYTES).all() for column in part.columns]
    columns = [c if fits else pa.nulls(len(part), c.type) for c, fits in zip(part.columns, short, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=part.schema)


def _rows(
    builder: RecordBuilder,
    number: int,
    part: Any,
    class_names: Mapping[str, Sequence[str]],
    files: Container[str],
) -> Iterator[tuple[dict[str, Json], bytes | None]]:
    """Yield the rows as JSON values, each with the image or audio file that it contains."""
    blobs: Iterable[bytes | None] = [None] * len(part)
    columns: dict[str, list[Json]] = {}
    for name, column in zip(part.schema.names, part.columns, strict=True):
        if name in files:
            blobs, paths = _files(column)
            held = enumerate(zip(blobs, paths, strict=True), number)
            columns[name] = [path or (builder.source.location(row + 1) if blob else None) for row, (blob, path) in held]
            continue
        values = json_values(column)
        known = class_names.get(name)
        columns[name] = [_class_name(value, known) for value in values] if known else values
    for blob, *cells in zip(blobs, *columns.values(), strict=True):
        yield dict(zip(columns, cells, strict=True)), blob


def _file_columns(task: Task, schema: Any) -> frozenset[str]:
    """Return the columns that hold files of the task.

    Bytes may also be text, for a task that takes texts, unless the column has the name of a field of files.
    """
    return frozenset(
        column.name
        for column in (schema if task.media else ())
        if is_file_column(column.type)
        and (task.reads_files or column.name in task.media or pa.types.is_struct(column.type))
    )


def _with_file_field(builder: RecordBuilder, part: Any, files: Container[str]) -> RecordBuilder:
    """Return the builder for rows of which the chosen column may hold files: their first bytes say of which type."""
    if builder.column is None or builder.column not in files:
        return builder
    media = builder.task.media
    blobs, _ = _files(part.column(builder.column))
    head = next((blob[:HEAD_BYTES] for blob in blobs if blob), b"")
    return replace(builder, file_field=next((kind for kind in media if detect_format(kind, head)), media[0]))


def _files(column: Any) -> tuple[list[bytes | None], list[str | None]]:
    """Return the files and paths in a column of files.

    `datasets` writes its Image and Audio features as `struct<bytes: binary, path: string>`:
    https://huggingface.co/docs/datasets/about_dataset_features
    """
    if not pa.types.is_struct(column.type):
        return column.to_pylist(), [None] * len(column)
    return pc.struct_field(column, "bytes").to_pylist(), pc.struct_field(column, "path").to_pylist()


def _class_names(schema: Any) -> dict[str, Sequence[str]]:
    """Return the class names that `datasets` stores in the file for ClassLabel features, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: _names_of(feature) for name, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: names for name, names in found.items() if names}


def _names_of(feature: Json) -> list[str] | None:
    """Return the names of a ClassLabel, or of a list of them."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names_of(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _names_of(feature.get("feature"))
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _class_name(value: Json, names: Sequence[str]) -> Json:
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value == -1:  # written by `datasets` for a missing label
        return None
    return names[value] if 0 <= value < len(names) else value


@contextmanager
def _open(source: Source) -> Iterator[tuple[str | IO[bytes], Any]]:
    with ExitStack() as stack:
        where: str | IO[bytes] = source.name
        if is_url(source.name):
            where = stack.enter_context(open_stream(source.name))
        elif not source.is_reopenable:  # Parquet is read from its end, and a pipe cannot seek
            where = stack.enter_context(tempfile.TemporaryFile())
            _spool(source, where)
        try:
            file = open_parquet(where)
        except pa.ArrowException as error:
            raise UsageError(f"{source.label} is not a Parquet file: {_reason(where, error)}") from error
        with file:
            yield where, file


def open_parquet(where: Any, **options: Any) -> Any:
    """Open a Parquet file without background threads.

    Threads that read ahead (`pre_buffer`) may release a Python file after the interpreter has exited, which aborts the
    process; and they hold whole row groups in memory.
    """
    return pq.ParquetFile(where, pre_buffer=False, **options)


def _reason(where: str | IO[bytes], error: Exception) -> str:
    if not isinstance(where, str) or is_url(where):
        return first_line(error)
    with Path(where).open("rb") as file:
        is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    return "it is a Git LFS pointer; run git lfs pull." if is_pointer else first_line(error)


def _spool(source: Source, target: IO[bytes]) -> None:
    if source.is_stdin:
        shutil.copyfileobj(sys.stdin.buffer, target)
    else:
        with open(source.name, "rb") as stream:  # noqa: PTH123 - a pipe, which Path would open no differently
            shutil.copyfileobj(stream, target)
    target.seek(0)


def _batches(source: Source, where: str | IO[bytes], file: Any, names: Sequence[str]) -> Iterator[Any]:
    try:
        kept = dictionary_columns(file, where, names)
        reader = open_parquet(where, metadata=file.metadata, read_dictionary=kept)
        for batch in reader.iter_batches(_batch_rows(file, names), columns=list(names), use_threads=False):
            if source.progress and source.progress.size:
                rows = file.metadata.num_rows
                source.progress.read += Path(source.name).stat().st_size * len(batch) // rows
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{source.label} is corrupt: {first_line(error)}") from error


def dictionary_columns(file: Any, where: str | IO[bytes] | None, names: Sequence[str]) -> list[str]:
    """Return the text columns to read as dictionaries, because their plain texts could fill the memory.

    Args:
        file: an open Parquet file.
        where: its path, if reading twice is cheap; otherwise all text columns are read as dictionaries (slower).
        names: of the columns to read.
    """
    leaves = [file.schema.column(number) for number in range(len(file.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and _top(leaf.path, names) in names]
    if not isinstance(where, str) or is_url(where):
        return texts
    return [path for path in texts if path not in names or _has_long_values(file, where, path)]


def _top(path: str, names: Sequence[str]) -> str:
    return path if path in names else path.partition(".")[0]


def _has_long_values(file: Any, where: str, name: str) -> bool:
    """Return whether a dictionary of the column has a long value. A batch of one row reads the whole dictionary."""
    reader = open_parquet(where, metadata=file.metadata, read_dictionary=[name])
    for group in range(file.num_row_groups):
        chunk = _chunk(file, group, name)
        if not chunk.has_dictionary_page or chunk.total_uncompressed_size < _LONG_VALUE:
            continue
        batch = next(reader.iter_batches(1, row_groups=[group], columns=[name], use_threads=False), None)
        if batch is not None and row_sizes(batch.column(0).dictionary).max(initial=0) > _LONG_VALUE:
            return True
    return False


def _chunk(file: Any, group: int, name: str) -> Any:
    metadata = file.metadata.row_group(group)
    chunks = (metadata.column(number) for number in range(metadata.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == name)


def _batch_rows(file: Any, names: Sequence[str]) -> int:
    """Return the number of rows in a batch: fewer if texts share prefixes (DELTA_BYTE_ARRAY)."""
    longest = 1
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        for chunk in (metadata.column(number) for number in range(metadata.num_columns)):
            if _top(chunk.path_in_schema, names) in names and repeats_beginnings(chunk):
                longest = max(longest, chunk.total_uncompressed_size)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // longest))


def repeats_beginnings(chunk: Any) -> bool:
    """Return whether a column chunk stores shared prefixes, so that its texts are larger than the chunk."""
    return "DELTA_BYTE_ARRAY" in chunk.encodings


def _record(builder: RecordBuilder, number: int, row: dict[str, Json], blob: bytes | None, max_bytes: int) -> Record:
    bad = [name for name, value in row.items() if contains_undecodable(value)]
    if bad:
        failure = Failure("bad_encoding", f"{builder.source.location(number + 1)}: the column {bad[0]!r} is not UTF-8")
        return builder.failed(number, failure, {k: v for k, v in row.items() if k not in bad})
    if sum(map(_size, row.values())) > max_bytes:
        return builder.failed(number, too_large_failure(builder.source, number, max_bytes), None)
    record = builder.record(number, number + 1, row)
    return record if blob is None or record.failure else replace(record, blob=blob)


def _size(value: Json) -> int:
    """Return the approximate size of the value as text, in bytes."""
    text = value if isinstance(value, str) else to_json(value)
    return len(text) if text.isascii() else len(text.encode())
