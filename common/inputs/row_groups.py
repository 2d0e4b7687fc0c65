"""Row groups of Parquet files: their sizes, and a cache of those read last. Reading one row reads its whole group."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import pyarrow as pa

from common.errors import PayloadError, UsageError
from common.inputs.file_split import FileSplit
from common.inputs.parquet import open_parquet, repeats_beginnings
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source, read_errors
from common.storage.filesystem import open_stream

#: Bytes of row groups that a process keeps, so that consecutive chunks of one group read it once.
_KEPT_BYTES = 64 * 1024**2
#: Largest column of a row group that can be read in place, in bytes; reading it takes three times as many.
GROUP_BYTES = 64 * 1024**2
#: The same for all columns that are read together.
_READ_GROUP_BYTES = 8 * GROUP_BYTES
#: Bytes of a value in memory at least, however few it takes in the file.
_VALUE_BYTES = 8


@dataclass(frozen=True, slots=True)
class _RowGroup:
    """A row group: its rows, and the uncompressed bytes of each top-level column."""

    rows: int
    columns: Mapping[str, int]
    is_small: bool  #: whether it can be read whole for a few rows


def _groups_of(source: Source) -> tuple[list[_RowGroup], list[str]]:
    """Return the row groups of a file and its column names."""
    with read_errors(source), open_stream(source.name) as stream:
        try:
            file = open_parquet(stream)
        except pa.ArrowException as error:
            raise UsageError(f"{source.label} is not a Parquet file: {error}") from error
        names = file.schema_arrow.names
        return [_row_group(file.metadata.row_group(number), names) for number in range(file.num_row_groups)], names


def _row_group(metadata: Any, names: Sequence[str]) -> _RowGroup:
    sizes = dict.fromkeys(names, 0)
    small = True
    for number in range(metadata.num_columns):
        column = metadata.column(number)
        path = column.path_in_schema  # nested: COLUMN.FIELD...
        name = path if path in sizes else path.partition(".")[0]
        sizes[name] = sizes.get(name, 0) + column.total_uncompressed_size
        small &= column.num_values * _VALUE_BYTES <= GROUP_BYTES and not repeats_beginnings(column)
    return _RowGroup(metadata.num_rows, sizes, small and max(sizes.values(), default=0) <= GROUP_BYTES)


def row_group_sizes(builder: RecordBuilder) -> list[tuple[int, int]]:
    """Return for each row group its rows and the bytes of the columns that records are built from."""
    groups, names = _groups_of(builder.source)
    wanted = builder.with_columns(names).read_columns(names)
    return [(group.rows, sum(group.columns[name] for name in wanted)) for group in groups]


def has_small_row_groups(builder: RecordBuilder) -> bool:
    """Return whether the columns of every row group are small enough to be read for a few of its rows."""
    groups, names = _groups_of(builder.source)
    wanted = builder.with_columns(names).read_columns(names)
    sizes = (sum(group.columns[name] for name in wanted) for group in groups)
    return all(group.is_small for group in groups) and max(sizes, default=0) <= _READ_GROUP_BYTES


class _RowGroups:
    """A cache of the row groups read last, by file, version, group and columns."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = Lock()

    def find(self, key: tuple[Any, ...]) -> Any:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def evict(self, size: int) -> None:
        with self._lock:
            while self._kept and size + sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)

    def keep(self, key: tuple[Any, ...], table: Any) -> None:
        with self._lock:
            self._kept[key] = table


_row_groups = _RowGroups()


def read_group(file: Any, rows: FileSplit, columns: list[str]) -> tuple[Any, int]:
    """Return the row group that contains the split, with texts as dictionaries, and its first row number."""
    first = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if first <= rows.start < first + count:
            key = (rows.source, rows.size, rows.version, group, *columns)
            table = _row_groups.find(key)
            if table is None:
                _row_groups.evict(file.metadata.row_group(group).total_byte_size)
                table = file.read_row_group(group, columns=columns, use_threads=False)
                _row_groups.keep(key, table)
            return table, first
        first += count
    raise PayloadError(f"{rows.source} has {first:,} rows; expected row {rows.start + 1:,}")
