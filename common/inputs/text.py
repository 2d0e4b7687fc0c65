"""Lines of text: records of `.txt` and `.jsonl`, and the bounded reading of lines for all text formats.

A line ends at a newline (or CR LF) only: other Unicode line separators may occur inside a record. Blank lines are
skipped but counted. `first` is the number of the line that a stream begins with: 0, except for a split of a file.
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source
from common.inputs.strict_json import parse_json
from common.records import Failure, Record

BOM = b"\xef\xbb\xbf"
_BLOCK = 64 * 1024
_ECHO = 200  # bytes kept of a line that is too long, for messages


class Line(NamedTuple):
    """A physical line."""

    number: int  #: from 0
    data: bytes  #: with its line end; only the first bytes of a line that is too long
    too_large: bool = False
    quotes: int = 0  #: number of `"` in a line that is too long, so that CSV finds the end of its row


def bounded_lines(stream: io.BufferedReader, max_bytes: int, first: int = 0) -> Iterator[Line]:
    """Yield the lines of the stream without a UTF-8 byte order mark, holding about `max_bytes` at most."""
    number = first
    limit = max_bytes + len(BOM) + len(b"\r\n")
    while data := stream.readline(limit):
        if number == 0:
            data = data.removeprefix(BOM)
        if len(data) > max_bytes and len(strip_newline(data)) > max_bytes:
            quotes = data.count(b'"') + (0 if data.endswith(b"\n") else _skip_line(stream))
            data = data[: _ECHO + 1]  # free the rest before anything else is allocated
            yield Line(number, data, too_large=True, quotes=quotes)
        else:
            yield Line(number, data)
        number += 1


def strip_newline(data: bytes) -> bytes:
    """Return the line without its line end."""
    return data.removesuffix(b"\n").removesuffix(b"\r")


def decode(source: Source, number: int, data: bytes) -> tuple[str, Failure | None]:
    """Return the text of line `number` (from 0); if it is not UTF-8, with replacements and the failure."""
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        location = (
            f"{source.location(number + 1)}: byte 0x{data[error.start]:02x} at position {error.start + 1} of the line"
        )
        return data.decode(errors="replace"), Failure("bad_encoding", f"{location} is not UTF-8")


def too_large_failure(source: Source, number: int, max_bytes: int) -> Failure:
    """Return the failure of a record at line `number` (from 0) that is longer than `max_bytes`."""
    return Failure(
        "too_large",
        f"{source.location(number + 1)}: the record is longer than {max_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)",
    )


def excerpt(data: bytes) -> str:
    """Return the line's text for messages, truncated if it is long."""
    if len(data) <= _ECHO:
        return strip_newline(data).decode(errors="replace")
    return data[:_ECHO].decode(errors="replace").rstrip("\ufffd") + "…"


def _skip_line(stream: io.BufferedReader) -> int:
    """Skip to the end of the line; return the number of `"` in it."""
    quotes = 0
    while chunk := stream.readline(_BLOCK):
        quotes += chunk.count(b'"')
        if chunk.endswith(b"\n"):
            break
    return quotes


def text_records(builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int, first: int = 0) -> Iterator[Record]:
    """Yield a record for each line that is not blank."""
    for line, text in _texts(builder, stream, max_bytes, first):
        yield text if isinstance(text, Record) else builder.text_record(line.number, text)


def json_records(builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int, first: int = 0) -> Iterator[Record]:
    """Yield a record for each line that is not blank; a line that is not JSON fails alone and keeps its text."""
    for line, text in _texts(builder, stream, max_bytes, first):
        if isinstance(text, Record):
            yield text
            continue
        try:
            value = parse_json(text)
        except ValueError as error:
            location = builder.source.location(line.number + 1)
            joint = ", " if str(error).startswith("column") else ": "
            yield builder.failed(line.number, Failure("bad_json", f"{location}{joint}{error}"), text)
        else:
            yield builder.record(line.number, line.number + 1, value)


def _texts(
    builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int, first: int
) -> Iterator[tuple[Line, str | Record]]:
    """Yield each line with its text, or with its failed record."""
    for line in bounded_lines(stream, max_bytes, first):
        if line.too_large:
            failure = too_large_failure(builder.source, line.number, max_bytes)
            yield line, builder.failed(line.number, failure, excerpt(line.data))
            continue
        text, bad_encoding = decode(builder.source, line.number, strip_newline(line.data))
        if bad_encoding:
            yield line, builder.failed(line.number, bad_encoding, text)
        elif text and not text.isspace():
            yield line, text
