"""Results as Parquet, and as an Arrow table: outputs are typed if the runner declares a type, else JSON text."""

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HugqueueError
from common.payloads.part_files import cells_to_table, row_schema
from common.results import ResultRow, as_text, cells
from common.storage.atomic import AtomicFile
from producer.outputs.writer import Writer

#: Rows and bytes of text that are converted to columns at once.
_GROUP_ROWS = 8192
_GROUP_BYTES = 64 * 1024 * 1024


class ParquetWriter(Writer):
    """Columns id, input, output, error_code, error_message, truncated; values that are not text are JSON text."""

    def __init__(self, path: Path, output_type: Any = None) -> None:
        """Create a writer; `output_type` is the Arrow type of an output, or None for JSON text."""
        super().__init__(path)
        self._typed = output_type is not None
        self._schema = row_schema(output_type)

    def _begin(self, file: AtomicFile) -> None:
        self._writer = pq.ParquetWriter(file.stream, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def _write(self, row: ResultRow) -> None:
        self._rows.append(_cells(row, typed=self._typed))
        self._bytes += sum(len(cell) for cell in self._rows[-1] if isinstance(cell, str))
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def _finish(self) -> None:
        self._write_group()
        self._writer.close()

    def _discard(self) -> None:
        with suppress(OSError, ValueError, pa.ArrowException):  # closing writes the footer, to a file no longer wanted
            self._writer.close()
        super()._discard()

    def _write_group(self) -> None:
        try:
            table = cells_to_table(self._rows, self._schema)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise HugqueueError(f"Cannot write {self.path}: an output is not of the declared type: {error}") from error
        self._writer.write_table(table)
        self._rows, self._bytes = [], 0


def to_table(rows: Iterable[ResultRow], output_type: Any) -> Any:
    """Return all rows as an Arrow table; `output_type` is the Arrow type of an output, or None for JSON text."""
    schema = row_schema(output_type)
    found = (_cells(row, typed=output_type is not None) for row in rows)
    groups = [schema.empty_table()]
    while group := list(islice(found, _GROUP_ROWS)):
        groups.append(cells_to_table(group, schema))
    return pa.concat_tables(groups)


def _cells(row: ResultRow, *, typed: bool) -> tuple[Any, ...]:
    return cells(row, row.output if typed else as_text(row.output))
