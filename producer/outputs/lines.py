"""Outcomes as lines of text: `.jsonl` and `.csv`, each also gzipped."""

import csv
import gzip
from typing import IO, Any

from common.rows import Row, as_text, to_line
from producer.outputs.aside import Aside
from producer.outputs.writers import Writer

CSV_COLUMNS = ("id", "input", "output", "error_code", "error_message", "truncated")


class _LineWriter(Writer):
    """Writes text, gzipped where the name says so."""

    def _begin(self, aside: Aside) -> None:
        self._stream: IO[bytes] | gzip.GzipFile = aside.stream
        if self.path.suffix.lower() == ".gz":
            # No name and no time inside: the same outcomes give the same file.
            self._stream = gzip.GzipFile(filename="", mode="wb", fileobj=aside.stream, compresslevel=6, mtime=0)

    def _finish(self) -> None:
        if isinstance(self._stream, gzip.GzipFile):
            self._stream.close()  # its last block; the file beneath stays open


class JsonLinesWriter(_LineWriter):
    """One JSON object a line."""

    def _write(self, row: Row) -> None:
        self._stream.write(to_line(row).encode() + b"\n")


class CsvWriter(_LineWriter):
    """The columns `CSV_COLUMNS`; an output that is not a scalar is JSON text."""

    def _begin(self, aside: Aside) -> None:
        super()._begin(aside)
        self._rows = csv.writer(_LineFeeds(self._stream))
        self._rows.writerow(CSV_COLUMNS)

    def _write(self, row: Row) -> None:
        code, message = (row.error.code, row.error.message) if row.error else (None, None)
        cells = (as_text(row.id), as_text(row.input), as_text(row.output), code, as_text(message))
        self._rows.writerow((*cells, "true" if row.truncated else "false"))


class _LineFeeds:
    """Ends lines with LF alone. (The csv module quotes a carriage return only when its own line end holds one.)"""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        self._stream.write(line.removesuffix("\r\n").encode() + b"\n")
