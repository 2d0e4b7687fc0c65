"""Outcomes as Parquet: the output typed where the runner declared a type, else JSON text."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HugqueueError
from common.payloads.part_files import cells_to_table, row_schema
from common.results import ResultRow, as_text, cells
from common.storage.atomic import AtomicFile
from producer.outputs.writer import Writer

_GROUP_ROWS = 8192
_GROUP_BYTES = 64 * 1024 * 1024


class ParquetWriter(Writer):
    """Columns id, input, output, error_code, error_message, truncated; texts as they are, other values as JSON text."""

    def __init__(self, path: Path, output_type: Any = None) -> None:
        """Take the Arrow type of an output, or None for JSON text."""
        super().__init__(path)
        self._typed = output_type is not None
        self._schema = row_schema(output_type)

    def _begin(self, aside: AtomicFile) -> None:
        self._writer = pq.ParquetWriter(aside.stream, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def _write(self, row: ResultRow) -> None:
        self._rows.append(cells(row, row.output if self._typed else as_text(row.output)))
        self._bytes += sum(len(cell) for cell in self._rows[-1] if isinstance(cell, str))
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def _finish(self) -> None:
        self._write_group()
        self._writer.close()

    def _discard(self) -> None:
        with suppress(OSError, ValueError, pa.ArrowException):  # it ends its file here, or would try after it is gone
            self._writer.close()
        super()._discard()

    def _write_group(self) -> None:
        try:
            table = cells_to_table(self._rows, self._schema)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise HugqueueError(f"Cannot write {self.path}: an output is not of the declared type: {error}") from error
        self._writer.write_table(table)
        self._rows, self._bytes = [], 0
