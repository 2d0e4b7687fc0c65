"""Arrow IPC streams from hands that may be hostile: opened only where they fit.

Opened plainly, a corrupted stream crashes the process, and one of a few kilobytes can expand to any size: zstd makes a
gigabyte of zeros some thirty kilobytes. So the schema is looked at before any data, and what a compressed batch says it
will expand to before it is expanded (Arrow's readers expand to exactly that, or fail). Knows nothing of columns.

The format: https://arrow.apache.org/docs/format/Columnar.html (sections "Compression" and "IPC Streaming Format"),
and the flatbuffers of `Message.fbs`.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from common.errors import PayloadError

#: Fields of the table `Message` and of the table `RecordBatch`, by their place in `Message.fbs`.
_MESSAGE_HEADER, _BATCH_ROWS, _BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 0, 2, 3
#: What a compressed buffer begins with: the length it expands to, or -1 where it was left as it is.
_PREFIX = struct.Struct("<q")
_PAIR = struct.Struct("<qq")
_OFFSET = struct.Struct("<I")


# Without threads: a payload has few columns, and a process that ends just after pyarrow has started some is aborted by
# them now and then ("terminate called without an active exception").


def write_stream(table: pa.Table) -> bytes:
    """Return the table as a stream of one batch, its buffers compressed with zstd."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def read_stream(data: bytes, check_schema: Callable[[pa.Schema], None], most_bytes: int, most_rows: int) -> pa.Table:
    """Return the table of a stream, checked through and through.

    Args:
        data: the stream.
        check_schema: raises `PayloadError` for a schema that is not wanted; called before any data is looked at.
        most_bytes: to which the data may expand.
        most_rows: that the table may have.

    Raises:
        PayloadError: it is no such stream, or too large.
    """
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with _faults(), pa.ipc.open_stream(data, options=options) as reader:
        check_schema(reader.schema)
        _check_extent(data, most_bytes, most_rows)
        table = reader.read_all()
        table.validate(full=True)
    return table


def read_schema(data: bytes, check_schema: Callable[[pa.Schema], None]) -> pa.Schema:
    """Return the schema of a stream, checked by `check_schema`; no data is looked at.

    Raises:
        PayloadError: it is no such stream.
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


def _check_extent(data: bytes, most_bytes: int, most_rows: int) -> None:
    messages = iter(pa.ipc.MessageReader.open_stream(pa.py_buffer(data)))
    next(messages)  # the schema
    held = rows = 0
    for message in messages:
        if message.type != "record batch":
            raise PayloadError(f"a stream with a {message.type}; only record batches are taken")
        more_bytes, more_rows = _extent(message)
        held, rows = held + more_bytes, rows + more_rows
        if held > most_bytes:
            raise PayloadError(f"the data expand to {held:,} bytes; at most {most_bytes:,} are taken")
        if rows > most_rows:
            raise PayloadError(f"a table of {rows:,} rows; at most {most_rows:,} are taken")


def _extent(message: pa.Message) -> tuple[int, int]:
    """Return how many bytes a batch takes once it is expanded, and how many rows it has."""
    metadata, body = memoryview(message.metadata), memoryview(message.body or b"")
    batch = _follow(metadata, _field(metadata, _follow(metadata, 0), _MESSAGE_HEADER))
    vector = _follow(metadata, _field(metadata, batch, _BATCH_BUFFERS))
    compressed = _field(metadata, batch, _BATCH_COMPRESSION) is not None
    sizes = []
    for number in range(_OFFSET.unpack_from(metadata, vector)[0]):
        offset, length = _PAIR.unpack_from(metadata, vector + _OFFSET.size + number * _PAIR.size)
        sizes.append(_expanded(body, offset, length) if compressed else length)
    place = _field(metadata, batch, _BATCH_ROWS)
    rows = 0 if place is None else _PREFIX.unpack_from(metadata, place)[0]
    if min((rows, *sizes)) < 0:
        raise PayloadError("a batch with a negative length")
    return sum(sizes), rows


def _expanded(body: memoryview, offset: int, length: int) -> int:
    if length == 0:
        return 0
    if offset < 0:
        raise PayloadError("a buffer with a negative offset")
    said: int = _PREFIX.unpack_from(body, offset)[0]
    return length - _PREFIX.size if said == -1 else said


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Return where field `number` of the flatbuffers table at `table` lies; None if it has its default value."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * number
    if vtable < 0 or entry >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset: int = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else None


def _follow(data: memoryview, place: int | None) -> int:
    """Return where the offset at `place` points to."""
    if place is None:
        raise PayloadError("a batch without its description")
    offset: int = _OFFSET.unpack_from(data, place)[0]
    return place + offset
