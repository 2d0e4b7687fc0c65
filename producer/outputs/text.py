"""Results as lines of text: `.jsonl` and `.csv`, optionally gzipped."""

import csv
import gzip
from pathlib import Path
from typing import IO, Any

from common.json_codec import as_text
from common.own_columns import ADDED, JSON, ColumnMisfit, Columns
from common.results import ResultLayout, ResultRow
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

    def __init__(self, path: Path, layout: ResultLayout) -> None:
        """Create a writer."""
        super().__init__(path)
        self._layout = layout

    def _write(self, row: ResultRow) -> None:
        self._stream.write(self._layout.to_line(row).encode() + b"\n")


class CsvWriter(_LineWriter):
    """Own columns, then what results add, the output as in `producer.outputs.csv_cells`.

    Raises:
        ColumnMisfit: at the end, rows had columns that are not among the known ones; write again with those it names.
    """

    def __init__(
        self, path: Path, layout: ResultLayout, columns: Columns, output_type: Any = None, *, safe: bool = False
    ) -> None:
        """Create a writer.

        Args:
            path: the file.
            layout: of the job's results.
            columns: the own columns of its records.
            output_type: Arrow type of an output, None where it has none.
            safe: escape cells that a spreadsheet would run as formulas.
        """
        super().__init__(path)
        self._layout = layout
        self._own = dict.fromkeys(layout.keep.chosen(columns))
        self._outputs = OutputCells(output_type, layout.keep.output, self._own)
        self._safe = safe
        self._unknown: dict[str, str] = {}  #: columns of rows that are not among those of the file

    def _begin(self, file: AtomicFile) -> None:
        super()._begin(file)
        self._rows = csv.writer(_LineFeeds(self._stream))
        added_id = ["id"] if self._layout.adds_id(self._own) else []
        self._rows.writerow([*self._own, *added_id, *self._outputs.names, *ADDED])

    def _finish(self) -> None:
        if self._unknown:
            raise ColumnMisfit(self._unknown)
        super()._finish()

    def _write(self, row: ResultRow) -> None:
        own = self._layout.cells(row, self._own)
        self._unknown |= {name: JSON for name in own if name not in self._own}
        if self._unknown:  # the rest is only read for its columns
            return
        error = row.error
        texts = [
            *(as_text(own.get(name)) for name in self._own),
            *([as_text(row.id)] if self._layout.adds_id(self._own) else []),
            *self._outputs.of(row.output, failed=error is not None),
            *((error.code, as_text(error.message)) if error else (None, None)),
        ]
        if self._safe:
            texts = [_escape_formula(text) for text in texts]
        self._rows.writerow((*texts, "true" if row.truncated else "false"))


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
