"""Reading in place: cutting a file into ranges of rows, and reading the records of one range."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from common.errors import PayloadError, StorageError, UsageError
from common.inputs.file_split import FORMATS, Cut, RowRange
from common.inputs.reader import Inputs
from common.inputs.record_builder import RecordMaker
from common.inputs.sources import Source, open_bytes
from common.inputs.text import BOM, body
from common.inputs.text_records import json_records, text_records
from common.records import Record
from common.settings import absolute
from common.storage.filesystem import open_file_system, open_stream, storage_errors, version_of
from common.storage.locations import is_address, is_shared
from common.tasks import Task

#: Bytes of text that the rows of one range may have: of Parquet nobody knows before they are read.
_RANGE_BYTES = 128 * 1024**2


def can_be_cut(source: Source) -> bool:
    """Whether rows in the middle of the source can be read by themselves.

    Not so in gzip, in CSV, whose quotes span lines, and in Parquet of very large row groups.

    Raises:
        UsageError: it cannot be read.
    """
    if source.format not in FORMATS or not source.rereadable:
        return False
    if source.format == "parquet":
        from common.inputs.row_groups import are_small

        return are_small(source)
    with open_stream(source.name) as stream:
        return stream.read(2) != b"\x1f\x8b"


def shared_makers(inputs: Inputs, shared: Sequence[str]) -> list[RecordMaker]:
    """Return what makes the records of the inputs, as all machines can read them in place; none if some cannot be.

    Raises:
        UsageError: an input cannot be read.
    """
    makers = [part for part in inputs.parts if isinstance(part, RecordMaker)]
    if not shared or inputs.task.media or any(make.source.is_stdin for make in makers):
        return []
    found = [replace(make, source=Source(absolute(make.source.name), make.source.format)) for make in makers]
    return found if all(is_shared(make.source.name, shared) and can_be_cut(make.source) for make in found) else []


def cut_source(make: RecordMaker, max_bytes: int, sizes: Iterator[int], most_bytes: int) -> Iterator[Cut]:
    """Yield the ranges of a source, in order, each at most so many records and bytes of text, one record at least.

    Args:
        make: makes records of the source.
        max_bytes: of one record; a longer one fails.
        sizes: most records of each range, one after the other, without end.
        most_bytes: of a range; of Parquet on the average.

    Raises:
        UsageError: it cannot be read, holds no text, lacks a column that is needed, or was changed meanwhile.
    """
    size, version = version_of(make.source.name)

    def range_of(start: int, end: int, first: int) -> RowRange:
        reading = (max_bytes, make.column, make.id_column, make.several)
        return RowRange(make.source.name, make.source.format, start, end, first, size, version, *reading)

    if make.source.format == "parquet":
        yield from _cut_parquet(make, range_of, sizes, most_bytes)
    else:
        yield from _cut_lines(make, range_of, max_bytes, sizes, most_bytes)
    if version_of(make.source.name) != (size, version):
        raise UsageError(
            f"{make.source.name} was changed while it was submitted; it had {size:,} bytes when that began. Submit it "
            "again once nobody writes to it."
        )


def size_to_cut(make: RecordMaker) -> int:
    """Return the sum of `Cut.bytes` of all ranges of a source, about.

    Raises:
        UsageError: as for `cut_source`.
    """
    if make.source.format != "parquet":
        return version_of(make.source.name)[0]
    from common.inputs.row_groups import weighed_groups

    return sum(size for _, size in weighed_groups(make))


def read_rows(rows: RowRange, task: Task) -> list[Record]:
    """Return the records of a range. Whether its file may be opened at all is for the caller to know.

    Raises:
        PayloadError: the file was changed since it was submitted, or does not hold what it should.
        StorageError: it cannot be read now.
    """
    rows.check_version()
    make = RecordMaker(Source(rows.source, rows.format), task, rows.column, rows.id_column, rows.several)
    try:
        if rows.format == "parquet":
            return _read_parquet(make, rows)
        held: Any = io.BytesIO(_read_bytes(rows))
        stream = io.BufferedReader(held)
        read = text_records if rows.format == "txt" else json_records
        return list(read(make, stream, rows.max_bytes, rows.first))
    except UsageError as error:
        raise PayloadError(str(error)) from error


def _read_bytes(rows: RowRange) -> bytes:
    if not is_address(rows.source):
        with open_stream(rows.source) as stream, storage_errors("read", rows.source):
            stream.seek(rows.start)
            return stream.read(rows.end - rows.start)
    with storage_errors("read", rows.source):
        files, path = open_file_system(rows.source)
        data: bytes = files.cat_file(path, start=rows.start, end=rows.end)
        return data


# Lines


def _cut_lines(
    make: RecordMaker, range_of: Any, max_bytes: int, sizes: Iterator[int], most_bytes: int
) -> Iterator[Cut]:
    start = end = first = number = records = 0
    most_records = next(sizes)
    with open_bytes(make.source) as stream:
        for length, shown, blank in _line_lengths(stream, max_bytes):
            heavy = end - start + length > most_bytes
            if records and not blank and (records >= most_records or heavy):
                yield Cut(range_of(start, end, first), records, end - start)
                start, first, records, most_records = end, number, 0, next(sizes)
            end += length
            number += 1
            records += not blank
            if shown < length:  # its head is enough to say that it is too large: the rest is in no range
                yield Cut(range_of(start, end - length + shown, first), records, shown)
                start, first, records = end, number, 0
    if records:
        yield Cut(range_of(start, end, first), records, end - start)


def _line_lengths(stream: io.BufferedReader, max_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Yield for each line: its bytes, how many of them a reader has to see, and whether it is blank."""
    limit = max_bytes + len(BOM) + len(b"\r\n")
    beginning = True
    while data := stream.readline(limit):
        length = shown = len(data)
        if beginning:
            data = data.removeprefix(BOM)
        beginning = False
        if len(body(data)) > max_bytes:
            while not data.endswith(b"\n") and (data := stream.readline(limit)):
                length += len(data)
            yield length, min(shown, length), False
        else:
            yield length, shown, _is_blank(data)


def _is_blank(line: bytes) -> bool:
    """Whether the line's text is nothing but white space, as its reader will find."""
    stripped = line.strip()
    if stripped and 0x20 < stripped[0] < 0x7F:  # by far the most lines
        return False
    try:
        text = stripped.decode()
    except UnicodeDecodeError:
        return False
    return not text or text.isspace()


# Parquet


def _cut_parquet(make: RecordMaker, range_of: Any, sizes: Iterator[int], most_bytes: int) -> Iterator[Cut]:
    from common.inputs.row_groups import weighed_groups

    first = 0
    for rows, weight in weighed_groups(make):
        fitting = max(1, most_bytes * rows // max(1, weight))  # if all rows are alike
        start = first
        first += rows
        while start < first:
            end = min(first, start + min(next(sizes), fitting))
            yield Cut(range_of(start, end, start), end - start, weight * (end - start) // rows)
            start = end


def _read_parquet(make: RecordMaker, rows: RowRange) -> list[Record]:
    import pyarrow as pa

    from common.inputs.parquet import dictionary_columns, open_parquet, records_of_batches
    from common.inputs.row_groups import read_group

    try:
        with open_stream(rows.source) as stream, storage_errors("read", rows.source):
            file = open_parquet(stream)
            names = file.schema_arrow.names
            make = make.with_columns(names)
            columns = make.columns(names)
            kept = dictionary_columns(file, None, columns)
            file = open_parquet(stream, metadata=file.metadata, read_dictionary=kept)
            table, first = read_group(file, rows, columns)
    except pa.ArrowException as error:
        raise PayloadError(f"{rows.source} is damaged: {error}") from error
    except StorageError as error:
        if isinstance(error.__cause__, pa.ArrowInvalid):
            raise PayloadError(f"{rows.source} is damaged: {error.__cause__}") from error
        raise
    wanted = table.slice(rows.start - first, rows.end - rows.start)
    if len(wanted) != rows.end - rows.start:
        raise PayloadError(f"{rows.source} has no rows {rows.start:,} to {rows.end:,} in one row group")
    return list(records_of_batches(make, wanted.to_batches(), rows.max_bytes, rows.start, _RANGE_BYTES))
