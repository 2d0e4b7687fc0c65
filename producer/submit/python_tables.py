"""Python tables as rows: pandas, polars, pyarrow, `datasets`, and dicts of columns.

They are recognized by their methods, so that none of these libraries is imported here.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import UsageError
from common.records import Json

#: Rows converted to Python objects at a time.
_ROWS = 1000


class HasColumns(Protocol):
    """A table of pandas, polars or pyarrow, for type checkers."""

    @property
    def columns(self) -> Any:
        """Its columns, or their names."""


class HasColumnNames(Protocol):
    """A dataset of `datasets`, for type checkers."""

    @property
    def column_names(self) -> Any:
        """The names of its columns."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by column name, or Arrow batches of them."""

    columns: tuple[str, ...]
    rows: Iterable[Mapping[str, Any]] = ()
    batches: Iterable[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows if self.batches is None else self.batches)


def table_of(value: Any) -> Table | None:  # noqa: PLR0911 - one kind of table after the other
    """Return `value` as a table, None if it is not one.

    Raises:
        UsageError: It is a dict but not a table: a single record, splits of a dataset, or columns of different lengths.
    """
    if isinstance(value, Mapping):
        return _table_of_columns(value)
    if hasattr(value, "iloc") and hasattr(value, "columns"):  # pandas.DataFrame
        return _pandas_table(value)
    if hasattr(value, "iter_rows") and hasattr(value, "to_arrow"):  # polars.DataFrame
        return Table(_names(value.columns), batches=value.to_arrow().to_batches())
    if hasattr(value, "to_batches"):  # pyarrow.Table, pyarrow.dataset.Dataset
        return Table(_names(value.schema.names), batches=value.to_batches())
    if hasattr(value, "to_pylist") and hasattr(value, "schema"):  # pyarrow.RecordBatch
        return Table(_names(value.schema.names), batches=[value])
    if hasattr(value, "features") and getattr(value, "column_names", None):  # datasets.Dataset, IterableDataset
        return _dataset_table(value)
    return None


def _names(columns: Iterable[Any]) -> tuple[str, ...]:
    return tuple(map(str, columns))


def _table_of_columns(value: Mapping[Any, Any]) -> Table:
    if any(hasattr(item, "features") and hasattr(item, "column_names") for item in value.values()):
        splits = ", ".join(map(repr, value))
        raise UsageError(f"records holds several splits of a dataset: choose one of {splits}.")
    columns = {str(name): _column(column) for name, column in value.items()}
    found = {name: column for name, column in columns.items() if column is not None}
    if not found or len(found) < len(columns):
        raise UsageError(
            "records is a single object. A table is an object of columns, each a list of cells; put a single record "
            "into a list: records=[{...}]."
        )
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        found_lengths = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"The columns of records must have the same length, found: {found_lengths}.")
    rows = (dict(zip(found, cells, strict=True)) for cells in zip(*found.values(), strict=True))
    return Table(tuple(found), rows)


def _column(value: Any) -> Any:
    """Return a column: something iterable with a length, but not a text or a dict; otherwise None."""
    if isinstance(value, str | bytes | Mapping) or not (hasattr(value, "__len__") and hasattr(value, "__iter__")):
        return None
    return value


def _dataset_table(dataset: Any) -> Table:
    """Return a dataset as batches of Arrow, which keep the types and the files, or as rows if it is lazy or formatted.

    A lazy dataset may give batches of different types.
    """
    names = _names(dataset.column_names)
    if not hasattr(dataset, "format") or dataset.format["type"] is not None:
        return Table(names, dataset)
    tables = dataset.with_format("arrow").iter(_ROWS)
    return Table(names, batches=(batch for table in tables for batch in table.to_batches()))


def _pandas_table(frame: Any) -> Table:
    """Return a frame as batches of Arrow, which keep the types, or as rows if Arrow would change a value."""
    import pyarrow as pa

    names = _names(frame.columns)
    if len(set(names)) == len(names):
        with suppress(pa.ArrowException, TypeError, ValueError):
            table = pa.Table.from_pandas(frame.set_axis(list(names), axis=1), preserve_index=False)
            if all(_same_objects(frame.iloc[:, number], column) for number, column in enumerate(table.columns)):
                return Table(names, batches=table.to_batches(_ROWS))
    return Table(names, _pandas_rows(frame))


def _same_objects(series: Any, column: Any) -> bool:
    """Whether no dict in a column was given the keys of the others, as Arrow does to make structs of them."""
    return series.dtype != object or "struct<" not in str(column.type) or column.to_pylist() == series.tolist()


def _pandas_rows(frame: Any) -> Iterator[dict[str, Json]]:
    names = _names(frame.columns)
    for first in range(0, len(frame), _ROWS):
        part = frame.iloc[first : first + _ROWS]
        cells = part.astype(object).where(part.notna(), None)  # missing values become None
        for row in cells.itertuples(index=False, name=None):
            yield dict(zip(names, row, strict=True))
