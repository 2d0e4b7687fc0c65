"""CSV and TSV records: a header, then rows; with quoting, a row may span lines.

Python's csv module parses in strict mode: a misplaced quote fails its row instead of silently joining rows. The text
consumed by a malformed row is skipped; parsing resumes after it. Without quoting, the definition of TSV
(https://www.iana.org/assignments/media-types/text/tab-separated-values), a quote is an ordinary character.
"""

import csv
import io
from collections.abc import Iterator, Sequence

from common.errors import UsageError
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source
from common.inputs.text import Line, bounded_lines, decode, excerpt, too_large_failure
from common.records import Failure, Record


def csv_records(builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int, delimiter: str) -> Iterator[Record]:
    """Yield a record for each row after the header; a malformed or too long row fails alone.

    Raises:
        UsageError: the header cannot be read, or lacks a required column.
    """
    # csv has one limit for the whole process; `_Feed` enforces the one that counts.
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    feed = _Feed(builder.source, stream, max_bytes)
    rows = _rows(feed, delimiter)
    names = _header(builder.source, rows, feed)
    builder = builder.with_columns(names)
    for number, fields in enumerate(rows):
        if isinstance(fields, Failure):
            yield builder.failed(number, fields, feed.echo)
            continue
        value = dict(zip(names, [*fields, *[None] * (len(names) - len(fields))], strict=False))
        if failure := feed.failure or _wrong_field_count(feed, fields, names):
            yield builder.failed(number, failure, value)
        else:
            yield builder.record(number, feed.first + 1, value)


class _TooLarge(Exception):
    """Raised through the csv reader for a row that is too long."""


class _Feed:
    """Feeds lines to the csv reader, and tracks where the current row began and what went wrong in it."""

    def __init__(self, source: Source, stream: io.BufferedReader, max_bytes: int) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self._lines = bounded_lines(stream, max_bytes)
        self.begin()

    def begin(self) -> None:
        """Start a new row."""
        self.first = self.last = -1  # lines from 0; -1 before the row's first line
        self.size = 0
        self.failure: Failure | None = None
        self._head = b""

    @property
    def echo(self) -> str:
        """The beginning of the row, for messages."""
        return excerpt(self._head)

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        quoted = self.first >= 0  # csv reads another line of the same row only inside quotes
        if not quoted:
            self.first = line.number
            self._head = line.data
        self.last = line.number
        self.size += len(line.data)
        if line.too_large or self.size > self.max_bytes:
            self._skip_row(line, quoted)
            raise _TooLarge
        text, failure = decode(self.source, line.number, line.data)
        self.failure = self.failure or failure
        return text

    def _skip_row(self, line: Line, quoted: bool) -> None:
        """Skip to the line that closes the quotes."""
        quoted = self.source.has_quotes and quoted ^ bool(_quotes(line) % 2)
        while quoted and (following := next(self._lines, None)) is not None:
            quoted ^= bool(_quotes(following) % 2)
            self.last = following.number


def _quotes(line: Line) -> int:
    return line.quotes if line.too_large else line.data.count(b'"')


def _rows(feed: _Feed, delimiter: str) -> Iterator[list[str] | Failure]:
    """Yield the fields of each row, or its failure; blank lines are skipped."""
    if feed.source.has_quotes:
        reader = csv.reader(feed, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(feed, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    while True:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except _TooLarge:
            yield too_large_failure(feed.source, feed.first, feed.max_bytes)
        except csv.Error as error:
            yield Failure("bad_csv", _describe_csv_error(feed, error))
        else:
            if fields:
                yield fields


def _describe_csv_error(feed: _Feed, error: csv.Error) -> str:
    location = feed.source.location(feed.first + 1)
    if "unexpected end" in str(error):
        what = "a quote in this row is never closed"
    elif "new-line" in str(error):
        what = "a carriage return outside quotes; lines end with LF or CR LF"
    else:
        what = f"{error}; double a quote inside quotes"
    return f"{location}: {what}{_consumed_lines(feed)}"


def _consumed_lines(feed: _Feed) -> str:
    return f" (the row extends to line {feed.last + 1})" if feed.last > feed.first else ""


def _header(source: Source, rows: Iterator[list[str] | Failure], feed: _Feed) -> list[str]:
    header = next(rows, None)
    if header is None:
        raise UsageError(f"Empty input: {source.label} contains no records.")
    if isinstance(header, Failure):
        raise UsageError(f"The header cannot be read. {header.message}.")
    if feed.failure:
        raise UsageError(f"The header cannot be read. {feed.failure.message}; expected UTF-8; convert it with iconv.")
    return [name.strip() for name in header]


def _wrong_field_count(feed: _Feed, fields: Sequence[str], names: Sequence[str]) -> Failure | None:
    """Return what is wrong with the number of fields. A short row has empty cells, unless it spans lines."""
    if len(fields) == len(names) or (len(fields) < len(names) and feed.last == feed.first):
        return None
    what = f"{len(fields)} fields, but the header has {len(names)}; "
    if feed.last > feed.first:
        what += "a quote may not be closed; --quoting none reads quotes as ordinary characters"
    else:
        what += "quote fields that contain the delimiter" * feed.source.has_quotes
        what += "a tab separates fields" * (not feed.source.has_quotes)
    return Failure("bad_csv", f"{feed.source.location(feed.first + 1)}: {what}{_consumed_lines(feed)}")
