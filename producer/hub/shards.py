"""Shards: chunks of results become Parquet files of a size that the Hub and its readers like.

A shard holds whole chunks and ends with the first that makes it large enough. So its boundaries depend on the results
alone, not on when they arrive.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HugqueueError
from common.jobs import JobSpec
from common.own_columns import ColumnMisfit
from common.payloads.arrays import holds_vectors
from common.payloads.result_tables import ResultTable
from common.results import ResultLayout, ResultRow
from common.tasks import declared_output

#: Rows and bytes in memory after which a row group is written.
_GROUP_ROWS = 8192
_GROUP_BYTES = 64 * 1024 * 1024


class Columns:
    """The columns of all shards. A value that fits none of the known types widens them, for all later shards."""

    def __init__(
        self, spec: JobSpec, output_type: Callable[[], Any], known: Mapping[str, str] | None = None, version: int = 0
    ) -> None:
        """Begin with the columns that are known.

        Args:
            spec: of the job.
            output_type: returns the Arrow type of the outputs, None for JSON text; called once there is a chunk.
            known: own columns and their types, as earlier shards widened them; None: those of the job.
            version: how often they did that.
        """
        self._layout, self._output_type = ResultLayout.of(spec), output_type
        self.types = spec.columns if known is None else known
        self.version = version
        form = declared_output(spec)
        #: Whether the outputs hold vectors of a length that no chunk has shown yet: those so far are all failures.
        self._open_length = form is not None and form.holds_vectors
        self._table: ResultTable | None = None

    def build(self, rows: Sequence[ResultRow]) -> pa.Table:
        """Return the table of some rows.

        Raises:
            pyarrow.ArrowException, TypeError, ValueError: an output is not of the declared type.
        """
        table = self._table
        if table is None or self._open_length:
            table = self._table = self._next_table(table)
        while True:
            try:
                return table.build(rows)
            except ColumnMisfit as misfit:
                self._table = table = table.widened(misfit)
                self.types, self.version = table.columns, self.version + 1

    def _next_table(self, earlier: ResultTable | None) -> ResultTable:
        kind = self._output_type()
        self._open_length = self._open_length and not holds_vectors(kind)
        if earlier is not None:
            if self._open_length:
                return earlier
            self.version += 1  # the shards before have lists of any length
        return ResultTable(self._layout, self.types, kind)


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A complete shard on this machine."""

    path: Path
    first: int  #: the first of its chunks
    end: int  #: the chunk after its last one
    records: int
    failed: int
    version: int  #: that of its columns


class _OpenShard:
    """A shard that is being written; all of its chunks have the same columns."""

    def __init__(self, directory: Path, first: int, columns_version: int, group_bytes: int) -> None:
        self.version = columns_version
        self._first, self._end = first, first
        self._group_bytes = group_bytes
        self._groups: list[Any] = []  #: tables of the next row group
        self._writer: Any = None
        self._stream = tempfile.NamedTemporaryFile(dir=directory, suffix=".parquet", delete=False)  # noqa: SIM115
        self._records = self._failed = 0

    def add(self, table: Any, rows: Sequence[ResultRow]) -> None:
        self._groups.append(table)
        self._end += 1
        self._records += len(rows)
        self._failed += sum(row.error is not None for row in rows)
        if sum(map(len, self._groups)) >= _GROUP_ROWS or sum(t.nbytes for t in self._groups) >= self._group_bytes:
            self._write_group()

    @property
    def size(self) -> int:
        """Bytes that were written so far."""
        return self._stream.tell()

    def finish(self) -> ShardFile:
        self._write_group()
        self._writer.close()
        self._stream.close()
        path = Path(self._stream.name)
        return ShardFile(path, self._first, self._end, self._records, self._failed, self.version)

    def discard(self) -> None:
        with suppress(OSError, ValueError, pa.ArrowException):
            self._stream.close()

    def _write_group(self) -> None:
        if not self._groups:
            return
        table = pa.concat_tables(self._groups)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._groups = []


def write_shards(
    chunks: Iterable[tuple[int, Sequence[ResultRow]]], columns: Columns, directory: Path, max_bytes: int
) -> Iterator[ShardFile]:
    """Write chunks to shards; yield each when it is complete.

    Args:
        chunks: numbers and rows of chunks, each the one after the last.
        columns: those of the shards. A chunk that widens them begins another shard.
        directory: where the files are written; whoever takes one deletes it.
        max_bytes: a shard ends with the chunk that makes it as large as this.

    Raises:
        HugqueueError: an output is not of the type that its task declares.
    """
    shard: _OpenShard | None = None
    try:
        for number, rows in chunks:
            table = _build(columns, number, rows)
            if shard is not None and shard.version != columns.version:
                complete, shard = shard.finish(), None
                yield complete
            if shard is None:
                shard = _OpenShard(directory, number, columns.version, min(_GROUP_BYTES, max_bytes))
            shard.add(table, rows)
            if shard.size >= max_bytes:
                complete, shard = shard.finish(), None
                yield complete
        if shard is not None:
            complete, shard = shard.finish(), None
            yield complete
    finally:
        if shard is not None:
            shard.discard()


def _build(columns: Columns, number: int, rows: Sequence[ResultRow]) -> pa.Table:
    try:
        return columns.build(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise HugqueueError(f"Chunk {number}: an output is not of the declared type: {error}") from error
