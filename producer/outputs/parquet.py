"""Results as Parquet, and as an Arrow table."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HugqueueError
from common.own_columns import ColumnMisfit
from common.payloads.result_tables import ResultTable
from common.records import Json
from common.results import ResultRow
from common.storage.atomic import AtomicFile
from producer.outputs.writer import Writer

#: Rows and bytes of text that are converted to columns at once.
_GROUP_ROWS = 8192
_GROUP_BYTES = 64 * 1024 * 1024


class ParquetWriter(Writer):
    """The columns of a `ResultTable`.

    Raises:
        ColumnMisfit: at the end, values did not fit the types of their columns; write again with the columns it names.
    """

    def __init__(self, path: Path, table: ResultTable) -> None:
        """Create a writer of these columns."""
        super().__init__(path)
        self._table = self._fitting = table

    def _begin(self, file: AtomicFile) -> None:
        self._writer = pq.ParquetWriter(file.stream, self._table.schema, compression="zstd")
        self._rows: list[ResultRow] = []
        self._bytes = 0

    def _write(self, row: ResultRow) -> None:
        self._rows.append(row)
        self._bytes += sum(map(_size, (row.input, row.output, row.own)))
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def _finish(self) -> None:
        self._write_group()
        if self._fitting is not self._table:
            raise ColumnMisfit(self._fitting.columns)
        self._writer.close()

    def _discard(self) -> None:
        with suppress(OSError, ValueError, pa.ArrowException):  # closing writes the footer, to a file no longer wanted
            self._writer.close()
        super()._discard()

    def _write_group(self) -> None:
        try:
            self._fitting, table = self._fitting.fit(self._rows)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise HugqueueError(f"Cannot write {self.path}: an output is not of the declared type: {error}") from error
        if self._fitting is self._table:  # otherwise the rest is only read for its types
            self._writer.write_table(table)
        self._rows, self._bytes = [], 0


def to_table(rows: Callable[[], Iterable[ResultRow]], table: ResultTable) -> pa.Table:
    """Return all rows as an Arrow table, its columns widened as their values require.

    Args:
        rows: reads the rows; called again for wider columns.
        table: the columns.
    """
    groups = [table.schema.empty_table()]
    fitting, found = table, iter(rows())
    while group := list(islice(found, _GROUP_ROWS)):
        fitting, built = fitting.fit(group)
        groups.append(built)
        if fitting is not table:  # the rest is only read for its types
            groups.clear()
    return pa.concat_tables(groups) if fitting is table else to_table(rows, fitting)


def _size(value: Json) -> int:
    return len(value) if isinstance(value, str | bytes) else 0
