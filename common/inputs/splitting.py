"""Splitting files that workers read in place, and reading the records of one split."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from common.errors import PayloadError, StorageError, UsageError
from common.inputs.file_split import FORMATS, FileSplit, SizedSplit
from common.inputs.reader import Inputs, names_files
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source, open_bytes
from common.inputs.templated_records import limit_text
from common.inputs.text import BOM, json_records, strip_newline, text_records
from common.own_columns import KEEP_NONE, Keep
from common.records import Record
from common.settings import absolute
from common.storage.filesystem import file_version, open_filesystem, open_stream, storage_errors
from common.storage.locations import is_shared, is_url
from common.tasks import Task
from common.template import Template

#: Largest text of one split, in bytes: for Parquet it is unknown before it is read.
_SPLIT_BYTES = 128 * 1024**2


def is_splittable(builder: RecordBuilder) -> bool:
    """Whether rows in the middle of a source can be read on their own.

    They cannot in gzip, in CSV (quotes may span lines), and in Parquet files with very large row groups.

    Raises:
        UsageError: it cannot be read.
    """
    source = builder.source
    if source.format not in FORMATS or not source.is_reopenable:
        return False
    if source.format == "parquet":
        from common.inputs.row_groups import has_small_row_groups

        return has_small_row_groups(builder)
    with open_stream(source.name) as stream:
        return stream.read(2) != b"\x1f\x8b"


def splittable_builders(inputs: Inputs, shared: Sequence[str]) -> list[RecordBuilder]:
    """Return the builders of the inputs if workers can read all of them in place, else an empty list.

    They cannot where records name files: their paths are relative to the producer's working directory.

    Raises:
        UsageError: an input cannot be read.
    """
    makers = [part for part in inputs.parts if isinstance(part, RecordBuilder)]
    if not shared or len(makers) < len(inputs.parts) or any(builder.source.is_stdin for builder in makers):
        return []
    found = [
        replace(builder, source=Source(absolute(builder.source.name), builder.source.format)) for builder in makers
    ]
    return (
        found
        if all(
            is_shared(builder.source.name, shared)
            and _has_utf8_names(builder)
            and is_splittable(builder)
            and not names_files(builder)
            for builder in found
        )
        else []
    )


def _has_utf8_names(builder: RecordBuilder) -> bool:
    """Whether a split, which is JSON, can carry the names of the file and its columns."""
    names = (builder.source.name, builder.column or "", builder.id_column or "")
    return not any("\ud800" <= letter <= "\udfff" for name in names for letter in name)


def split_source(
    builder: RecordBuilder, max_bytes: int, sizes: Iterator[int], max_split_bytes: int
) -> Iterator[SizedSplit]:
    """Yield the splits of a source, in order, each with at least one record.

    Args:
        builder: builds the records of the source.
        max_bytes: of one record; a longer one fails.
        sizes: the largest number of records of each split; endless.
        max_split_bytes: of a split; for Parquet on average.

    Raises:
        UsageError: it cannot be read, is not text, lacks a required column, or changed meanwhile.
    """
    size, version = file_version(builder.source.name)
    if builder.template:  # which is part of each record's text
        most = max(1, max_split_bytes // len(builder.template.text))
        sizes = (min(size, most) for size in sizes)
    format_: Any = builder.source.format  # one of `FORMATS`

    def make_split(start: int, end: int, first: int) -> FileSplit:
        reading = (max_bytes, builder.column, builder.id_column, builder.multiple_inputs)
        return FileSplit(builder.source.name, format_, start, end, first, size, version, *reading)

    if builder.source.format == "parquet":
        yield from _split_parquet(builder, make_split, sizes, max_split_bytes)
    else:
        yield from _split_lines(builder, make_split, max_bytes, sizes, max_split_bytes)
    if file_version(builder.source.name) != (size, version):
        raise UsageError(
            f"{builder.source.name} changed while it was submitted; it had {size:,} bytes at the start. "
            "Submit it again when it is complete."
        )


def splittable_bytes(builder: RecordBuilder) -> int:
    """Return the approximate sum of `SizedSplit.bytes` over a source.

    Raises:
        UsageError: as for `split_source`.
    """
    if builder.source.format != "parquet":
        return file_version(builder.source.name)[0]
    from common.inputs.row_groups import row_group_sizes

    return sum(size for _, size in row_group_sizes(builder))


def read_split(rows: FileSplit, task: Task, template: Template | None = None, keep: Keep = KEEP_NONE) -> list[Record]:
    """Return the records of a split. The caller checks whether its file may be opened.

    Args:
        rows: the split.
        task: of its job.
        template: of its job, which makes the texts.

    Raises:
        PayloadError: the file changed after it was submitted, or does not contain the split.
        StorageError: it cannot be read now.
    """
    rows.check_version()
    source = Source(rows.source, rows.format)
    builder = RecordBuilder(
        source, task, rows.column, rows.id_column, rows.multiple_inputs, template=template, keep=keep
    )
    try:
        if rows.format == "parquet":
            return _limited(_read_parquet(builder, rows), builder)
        held: Any = io.BytesIO(_read_bytes(rows))
        stream = io.BufferedReader(held)
        read = text_records if rows.format == "txt" else json_records
        return _limited(read(builder, stream, rows.max_bytes, rows.first), builder)
    except UsageError as error:
        raise PayloadError(str(error)) from error


def _limited(records: Iterator[Record], builder: RecordBuilder) -> list[Record]:
    return list(limit_text(records, builder.source, _SPLIT_BYTES) if builder.template else records)


def _read_bytes(rows: FileSplit) -> bytes:
    if not is_url(rows.source):
        with open_stream(rows.source) as stream, storage_errors("read", rows.source):
            stream.seek(rows.start)
            return stream.read(rows.end - rows.start)
    with storage_errors("read", rows.source):
        files, path = open_filesystem(rows.source)
        data: bytes = files.cat_file(path, start=rows.start, end=rows.end)
        return data


# Lines


def _split_lines(
    builder: RecordBuilder, make_split: Any, max_bytes: int, sizes: Iterator[int], max_split_bytes: int
) -> Iterator[SizedSplit]:
    start = end = first = number = records = 0
    max_records = next(sizes)
    with open_bytes(builder.source) as stream:
        for length, shown, blank in _line_lengths(stream, max_bytes):
            heavy = end - start + length > max_split_bytes
            if records and not blank and (records >= max_records or heavy):
                yield SizedSplit(make_split(start, end, first), records, end - start)
                start, first, records, max_records = end, number, 0, next(sizes)
            end += length
            number += 1
            records += not blank
            if shown < length:  # its head is enough to say that it is too large: the rest is in no range
                yield SizedSplit(make_split(start, end - length + shown, first), records, shown)
                start, first, records = end, number, 0
    if records:
        yield SizedSplit(make_split(start, end, first), records, end - start)


def _line_lengths(stream: io.BufferedReader, max_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Yield for each line: its bytes, how many of them a reader has to see, and whether it is blank."""
    limit = max_bytes + len(BOM) + len(b"\r\n")
    beginning = True
    while data := stream.readline(limit):
        length = shown = len(data)
        if beginning:
            data = data.removeprefix(BOM)
        beginning = False
        if len(strip_newline(data)) > max_bytes:
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


def _split_parquet(
    builder: RecordBuilder, make_split: Any, sizes: Iterator[int], max_split_bytes: int
) -> Iterator[SizedSplit]:
    from common.inputs.row_groups import row_group_sizes

    first = 0
    for rows, weight in row_group_sizes(builder):
        fitting = max(1, max_split_bytes * rows // max(1, weight))  # if all rows are alike
        start = first
        first += rows
        while start < first:
            end = min(first, start + min(next(sizes), fitting))
            yield SizedSplit(make_split(start, end, start), end - start, weight * (end - start) // rows)
            start = end


def _read_parquet(builder: RecordBuilder, rows: FileSplit) -> Iterator[Record]:
    import pyarrow as pa

    from common.inputs.parquet import dictionary_columns, open_parquet, records_of_batches
    from common.inputs.row_groups import read_group

    try:
        with open_stream(rows.source) as stream, storage_errors("read", rows.source):
            file = open_parquet(stream)
            schema = file.schema_arrow
            builder = builder.with_columns(schema.names)
            columns = builder.read_columns(schema.names)
            kept = dictionary_columns(file, None, columns)
            file = open_parquet(stream, metadata=file.metadata, read_dictionary=kept)
            table, first = read_group(file, rows, columns)
    except pa.ArrowException as error:
        raise PayloadError(f"{rows.source} is corrupt: {error}") from error
    except StorageError as error:
        if isinstance(error.__cause__, pa.ArrowInvalid):
            raise PayloadError(f"{rows.source} is corrupt: {error.__cause__}") from error
        raise
    wanted = table.slice(rows.start - first, rows.end - rows.start)
    if len(wanted) != rows.end - rows.start:
        raise PayloadError(f"{rows.source} has no rows {rows.start:,} to {rows.end:,} in one row group")
    return records_of_batches(
        builder,
        wanted.to_batches(),
        rows.max_bytes,
        schema=schema,
        first=rows.start,
        max_total_bytes=_SPLIT_BYTES,
    )
