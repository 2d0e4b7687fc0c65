"""Shards: chunks of results become Parquet files of a size that the Hub and its readers like.

A shard holds whole chunks and ends with the first that makes it large enough. So its boundaries depend on the results
alone, not on when they arrive.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import HugqueueError
from common.results import ResultRow
from producer.outputs.parquet import to_table

#: Rows and bytes in memory after which a row group is written.
_GROUP_ROWS = 8192
_GROUP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A complete shard on this machine."""

    path: Path
    first: int  #: the first of its chunks
    end: int  #: the chunk after its last one
    records: int
    failed: int


class _OpenShard:
    """A shard that is being written."""

    def __init__(self, path: Path, first: int, group_bytes: int) -> None:
        self._path, self._first, self._end = path, first, first
        self._group_bytes = group_bytes
        self._groups: list[Any] = []  #: tables of the next row group
        self._writer: Any = None
        self._stream = path.open("wb")
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
        return ShardFile(self._path, self._first, self._end, self._records, self._failed)

    def discard(self) -> None:
        with suppress(OSError, ValueError, pa.ArrowException):
            self._stream.close()

    def _write_group(self) -> None:
        if not self._groups:
            return
        try:
            table = pa.concat_tables(self._groups)
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._stream, table.schema, compression="zstd")
            self._writer.write_table(table.cast(self._writer.schema))
        except (pa.ArrowException, ValueError) as error:
            raise HugqueueError(
                f"Chunks {self._first} to {self._end - 1} have columns of different types: {error}"
            ) from error
        self._groups = []


def write_shards(
    chunks: Iterable[tuple[int, Sequence[ResultRow]]], output_type: Callable[[], Any], directory: Path, max_bytes: int
) -> Iterator[ShardFile]:
    """Write chunks to shards; yield each when it is complete.

    Args:
        chunks: numbers and rows of chunks, each the one after the last.
        output_type: returns the Arrow type of the outputs, None for JSON text; called once there is a chunk.
        directory: where the files are written; whoever takes one deletes it.
        max_bytes: a shard ends with the chunk that makes it as large as this.

    Raises:
        HugqueueError: the columns of the chunks do not fit together.
    """
    shard: _OpenShard | None = None
    try:
        for number, rows in chunks:
            if shard is None:
                shard = _OpenShard(directory / f"{number}.parquet", number, min(_GROUP_BYTES, max_bytes))
            shard.add(to_table(rows, output_type()), rows)
            if shard.size >= max_bytes:
                complete, shard = shard.finish(), None
                yield complete
        if shard is not None:
            complete, shard = shard.finish(), None
            yield complete
    finally:
        if shard is not None:
            shard.discard()
