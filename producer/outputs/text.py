"""Outcomes as lines of text: `.jsonl` and `.csv`, each also gzipped."""

import csv
import gzip
from pathlib import Path
from typing import IO, Any

from common.results import COLUMNS, ResultRow, as_text, cells, to_line
from common.storage.atomic import AtomicFile
from producer.outputs.writer import Writer

#: What a spreadsheet takes for the beginning of a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


class _LineWriter(Writer):
    """Writes text, gzipped where the name says so."""

    def _begin(self, aside: AtomicFile) -> None:
        self._stream: IO[bytes] | gzip.GzipFile = aside.stream
        if self.path.suffix.lower() == ".gz":
            # No name and no time inside: the same outcomes give the same file.
            self._stream = gzip.GzipFile(filename="", mode="wb", fileobj=aside.stream, compresslevel=6, mtime=0)

    def _finish(self) -> None:
        if isinstance(self._stream, gzip.GzipFile):
            self._stream.close()  # its last block; the file beneath stays open


class JsonLinesWriter(_LineWriter):
    """One JSON object a line."""

    def _write(self, row: ResultRow) -> None:
        self._stream.write(to_line(row).encode() + b"\n")


class CsvWriter(_LineWriter):
    """The columns `COLUMNS`; an output that is not a scalar is JSON text."""

    def __init__(self, path: Path, *, safe: bool = False) -> None:
        """Take whether cells that a spreadsheet would run as a formula are escaped."""
        super().__init__(path)
        self._safe = safe

    def _begin(self, aside: AtomicFile) -> None:
        super()._begin(aside)
        self._rows = csv.writer(_LineFeeds(self._stream))
        self._rows.writerow(COLUMNS)

    def _write(self, row: ResultRow) -> None:
        *texts, truncated = cells(row, as_text(row.output))
        if self._safe:
            texts = [_escaped(text) for text in texts]
        self._rows.writerow((*texts, "true" if truncated else "false"))


def _escaped(text: str | None) -> str | None:
    """Return a cell that no spreadsheet runs: https://owasp.org/www-community/attacks/CSV_Injection."""
    if not text or not text.startswith(_FORMULAS):
        return text
    try:
        float(text)  # a number begins with a sign too
    except ValueError:
        return f"'{text}"
    return text


class _LineFeeds:
    """Ends lines with LF alone. (The csv module quotes a carriage return only when its own line end holds one.)"""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        self._stream.write(line.removesuffix("\r\n").encode() + b"\n")
