"""Safe Arrow IPC: streams from untrusted peers, validated before they are decoded.

A corrupted stream can crash Arrow's reader, and a stream of a few kilobytes can expand to any size: zstd compresses a
gigabyte of zeros to thirty kilobytes. So the schema is checked before any data, and the length that each compressed
buffer declares before it is expanded (Arrow's readers expand to exactly that length, or fail).

The format: https://arrow.apache.org/docs/format/Columnar.html (sections "Compression" and "IPC Streaming Format"),
and the flatbuffers of `Message.fbs`.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from common.errors import PayloadError

#: Fields of the table `Message` and of the table `RecordBatch`, by their position in `Message.fbs`.
_MESSAGE_HEADER, _BATCH_ROWS, _BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 0, 2, 3
#: What a compressed buffer begins with: the length it expands to, or -1 if it is not compressed.
_PREFIX = struct.Struct("<q")
_PAIR = struct.Struct("<qq")
_OFFSET = struct.Struct("<I")


# No threads: a payload has few columns, and a process that exits just after pyarrow has started its threads is
# sometimes aborted by them ("terminate called without an active exception").


def write_stream(table: pa.Table) -> bytes:
    """Return the table as a stream of one batch, its buffers compressed with zstd."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def read_stream(data: bytes, check_schema: Callable[[pa.Schema], None], max_bytes: int, max_rows: int) -> pa.Table:
    """Return the table of a stream, fully validated.

    Args:
        data: the stream.
        check_schema: raises `PayloadError` for a wrong schema; called before any data is read.
        max_bytes: that the data may expand to.
        max_rows: that the table may have.

    Raises:
        PayloadError: it is not such a stream, or too large.
    """
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with _faults(), pa.ipc.open_stream(data, options=options) as reader:
        check_schema(reader.schema)
        _check_extent(data, max_bytes, max_rows)
        table = reader.read_all()
        table.validate(full=True)
    return table


def read_schema(data: bytes, check_schema: Callable[[pa.Schema], None]) -> pa.Schema:
    """Return the schema of a stream, checked by `check_schema`, without reading any data.

    Raises:
        PayloadError: it is not such a stream.
    """
    with _faults(), pa.ipc.open_stream(data) as reader:
        check_schema(reader.schema)
        return reader.schema


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, MemoryError, StopIteration, struct.error) as error:
        raise PayloadError(f"not an Arrow stream: {str(error) or type(error).__name__}") from error


def _check_extent(data: bytes, max_bytes: int, max_rows: int) -> None:
    messages = iter(pa.ipc.MessageReader.open_stream(pa.py_buffer(data)))
    next(messages)  # the schema
    held = rows = 0
    for message in messages:
        if message.type != "record batch":
            raise PayloadError(f"a stream with a {message.type}; only record batches are accepted")
        more_bytes, more_rows = _extent(message)
        held, rows = held + more_bytes, rows + more_rows
        if held > max_bytes:
            raise PayloadError(f"the data expand to {held:,} bytes; at most {max_bytes:,} are accepted")
        if rows > max_rows:
            raise PayloadError(f"a table of {rows:,} rows; at most {max_rows:,} are accepted")


def _extent(message: pa.Message) -> tuple[int, int]:
    """Return the bytes that a batch expands to, and its number of rows."""
    metadata, body = memoryview(message.metadata), memoryview(message.body or b"")
    batch = _follow(metadata, _field(metadata, _follow(metadata, 0), _MESSAGE_HEADER))
    vector = _follow(metadata, _field(metadata, batch, _BATCH_BUFFERS))
    compressed = _field(metadata, batch, _BATCH_COMPRESSION) is not None
    sizes = []
    for number in range(_OFFSET.unpack_from(metadata, vector)[0]):
        offset, length = _PAIR.unpack_from(metadata, vector + _OFFSET.size + number * _PAIR.size)
        sizes.append(_expanded(body, offset, length) if compressed else length)
    position = _field(metadata, batch, _BATCH_ROWS)
    rows = 0 if position is None else _PREFIX.unpack_from(metadata, position)[0]
    if min((rows, *sizes)) < 0:
        raise PayloadError("a batch with a negative length")
    return sum(sizes), rows


def _expanded(body: memoryview, offset: int, length: int) -> int:
    if length == 0:
        return 0
    if offset < 0:
        raise PayloadError("a buffer with a negative offset")
    declared: int = _PREFIX.unpack_from(body, offset)[0]
    return length - _PREFIX.size if declared == -1 else declared


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Return the position of field `number` of the flatbuffers table at `table`, None if it has its default value."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * number
    if vtable < 0 or entry >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset: int = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else None


def _follow(data: memoryview, position: int | None) -> int:
    """Return the position that the offset at `position` points to."""
    if position is None:
        raise PayloadError("a batch without its description")
    offset: int = _OFFSET.unpack_from(data, position)[0]
    return position + offset
