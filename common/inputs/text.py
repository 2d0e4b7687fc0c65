"""Lines of a byte stream, none held beyond a bound, and their text.

A line ends at a newline (or CR LF) and at nothing else: what Unicode counts as line ends may stand inside a record.
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

from common.inputs.sources import Source
from common.records import Failure

BOM = b"\xef\xbb\xbf"
_BLOCK = 64 * 1024
_ECHO = 200  # bytes of an oversized line that are kept to show


class Line(NamedTuple):
    """A physical line."""

    number: int  #: from 0
    data: bytes  #: with its line end; only the first bytes of a line that is too large
    too_large: bool = False
    quotes: int = 0  #: how many `"` a line that is too large holds, so that CSV can find its end


def bounded_lines(stream: io.BufferedReader, max_bytes: int, first: int = 0) -> Iterator[Line]:
    """Yield the lines of the stream, a UTF-8 byte order mark left out, holding about `max_bytes` at most.

    `first` is the number of the line that the stream begins with.
    """
    number = first
    limit = max_bytes + len(BOM) + len(b"\r\n")
    while data := stream.readline(limit):
        if number == 0:
            data = data.removeprefix(BOM)
        if len(data) > max_bytes and len(strip_newline(data)) > max_bytes:
            quotes = data.count(b'"') + (0 if data.endswith(b"\n") else _skip_line(stream))
            data = data[: _ECHO + 1]  # let go of the rest before anybody else allocates
            yield Line(number, data, too_large=True, quotes=quotes)
        else:
            yield Line(number, data)
        number += 1


def strip_newline(data: bytes) -> bytes:
    """Return the line without its line end."""
    return data.removesuffix(b"\n").removesuffix(b"\r")


def decode(source: Source, number: int, data: bytes) -> tuple[str, Failure | None]:
    """Return the text of line `number` (from 0), repaired where it is not UTF-8, with the failure that says so."""
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        location = (
            f"{source.location(number + 1)}: byte 0x{data[error.start]:02x} at position {error.start + 1} of the line"
        )
        return data.decode(errors="replace"), Failure("bad_encoding", f"{location} is not UTF-8")


def too_large_failure(source: Source, number: int, max_bytes: int) -> Failure:
    """Return the failure of a record that begins at line `number` (from 0) and is longer than `max_bytes`."""
    return Failure(
        "too_large",
        f"{source.location(number + 1)}: the record is longer than {max_bytes:,} bytes (HUGQUEUE_MAX_RECORD_BYTES)",
    )


def excerpt(data: bytes) -> str:
    """Return the line's text, to show; only its beginning where it is long."""
    if len(data) <= _ECHO:
        return strip_newline(data).decode(errors="replace")
    return data[:_ECHO].decode(errors="replace").rstrip("\ufffd") + "…"


def _skip_line(stream: io.BufferedReader) -> int:
    """Read to the end of the line, holding nothing; return how many `"` it held."""
    quotes = 0
    while chunk := stream.readline(_BLOCK):
        quotes += chunk.count(b'"')
        if chunk.endswith(b"\n"):
            break
    return quotes
