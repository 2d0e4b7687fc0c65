"""Results as lines of text: `.jsonl` and `.csv`, optionally gzipped."""

import csv
import gzip
from pathlib import Path
from typing import IO, Any

from common.results import COLUMNS, ResultRow, cells, to_line
from common.storage.atomic import AtomicFile
from producer.outputs.csv_cells import OutputCells
from producer.outputs.writer import Writer

#: Characters that start a formula in a spreadsheet.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class _LineWriter(Writer):
    """Writes text, gzipped if the extension says so."""

    def _begin(self, file: AtomicFile) -> None:
        self._stream: IO[bytes] | gzip.GzipFile = file.stream
        if self.path.suffix.lower() == ".gz":
            # Without name and time inside, the same results give the same file.
            self._stream = gzip.GzipFile(filename="", mode="wb", fileobj=file.stream, compresslevel=6, mtime=0)

    def _finish(self) -> None:
        if isinstance(self._stream, gzip.GzipFile):
            self._stream.close()  # writes its last block; the underlying file stays open


class JsonLinesWriter(_LineWriter):
    """One JSON object per line."""

    def _write(self, row: ResultRow) -> None:
        self._stream.write(to_line(row).encode() + b"\n")


class CsvWriter(_LineWriter):
    """The columns `COLUMNS`, those of the output as in `producer.outputs.csv_cells`."""

    def __init__(self, path: Path, output_type: Any = None, *, safe: bool = False) -> None:
        """Create a writer.

        Args:
            path: the file.
            output_type: Arrow type of an output, None where it has none.
            safe: escape cells that a spreadsheet would run as formulas.
        """
        super().__init__(path)
        self._outputs = OutputCells(output_type)
        self._safe = safe

    def _begin(self, file: AtomicFile) -> None:
        super()._begin(file)
        self._rows = csv.writer(_LineFeeds(self._stream))
        self._rows.writerow((*COLUMNS[:2], *self._outputs.names, *COLUMNS[3:]))

    def _write(self, row: ResultRow) -> None:
        id_, input_, _, code, message, truncated = cells(row, None)
        texts = [id_, input_, *self._outputs.of(row.output, failed=row.error is not None), code, message]
        if self._safe:
            texts = [_escape_formula(text) for text in texts]
        self._rows.writerow((*texts, "true" if truncated else "false"))


def _escape_formula(text: str | None) -> str | None:
    """Return a cell that no spreadsheet runs: https://owasp.org/www-community/attacks/CSV_Injection."""
    if not text or not text.startswith(_FORMULA_STARTS):
        return text
    try:
        float(text)  # a number may start with a sign too
    except ValueError:
        return f"'{text}"
    return text


class _LineFeeds:
    """Ends lines with LF. (The csv module quotes a carriage return only if its own line terminator contains one.)"""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        self._stream.write(line.removesuffix("\r\n").encode() + b"\n")
