"""Outcomes as Parquet: the output typed where the runner declared a type, else JSON text."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HugqueueError
from producer.outputs.aside import Aside
from producer.outputs.lines import as_text
from producer.outputs.rows import Row
from producer.outputs.writers import Writer

_GROUP_ROWS = 8192
_GROUP_BYTES = 64 * 1024 * 1024


class ParquetWriter(Writer):
    """Columns id, input, output, error_code, error_message, truncated; texts as they are, other values as JSON text."""

    def __init__(self, path: Path, output_type: Any = None) -> None:
        """Take the Arrow type of an output, or None for JSON text."""
        super().__init__(path)
        self._typed = output_type is not None
        self._schema = pa.schema(
            {
                "id": pa.string(),
                "input": pa.string(),
                "output": _widely_read(output_type) if self._typed else pa.string(),
                "error_code": pa.string(),
                "error_message": pa.string(),
                "truncated": pa.bool_(),
            }
        )

    def _begin(self, aside: Aside) -> None:
        self._writer = pq.ParquetWriter(aside.stream, self._schema, compression="zstd")
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def _write(self, row: Row) -> None:
        code, message = (row.failure.code, row.failure.message) if row.failure else (None, None)
        output = row.output if self._typed else (None if row.failure else as_text(row.output))
        cells = (as_text(row.id), as_text(row.input), output, code, as_text(message), row.truncated)
        self._rows.append(cells)
        self._bytes += sum(len(cell) for cell in cells if isinstance(cell, str))
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
        columns = zip(*self._rows, strict=True) if self._rows else [[]] * len(self._schema)
        try:
            arrays = [pa.array(list(cells), field.type) for cells, field in zip(columns, self._schema, strict=True)]
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise HugqueueError(f"Cannot write {self.path}: an output is not of the declared type: {error}") from error
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0


def _widely_read(kind: Any) -> Any:
    """Return the type with lists of free length in place of fixed ones, which few readers of Parquet know."""
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind
