"""Result tables: rows of results as an Arrow table, their own columns in the types that the job knows.

A job knows the types of JSON lines from their first records only. A later value that does not fit raises
`ColumnMisfit`; the caller writes again, with a wider type.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from common.errors import PayloadError
from common.inputs.arrow_rows import ArrowRow, ArrowRows, json_cells, plain_type
from common.jobs import JobSpec
from common.json_codec import as_text
from common.own_columns import JSON, TEXT, ColumnMisfit, arrow_type, fits, infer_columns, widen
from common.payloads.arrays import column_array, text_array
from common.payloads.codec import MAX_EXPANDED
from common.payloads.own_columns import is_valid, plain_column, take_rows
from common.records import Json
from common.results import ResultLayout, ResultRow

#: What Arrow raises over a value that a type cannot hold.
_NO_SUCH_VALUE = (pa.ArrowException, TypeError, ValueError, OverflowError)


class ResultTable:
    """The columns of a job's results, and tables of them."""

    def __init__(self, layout: ResultLayout, columns: Mapping[str, str], output_type: Any = None) -> None:
        """Fix the columns.

        Args:
            layout: of the job's results.
            columns: own columns and their types.
            output_type: the Arrow type of an output; None for JSON text, or plain text if it is a text.

        Raises:
            PayloadError: a type is damaged, or a column has the name of an added one.
        """
        self.layout = layout
        self.columns = {name: columns[name] for name in layout.keep.chosen(columns)}
        self._output_type = output_type
        if clashes := layout.keep.clashes(self.columns):
            raise PayloadError(f"own columns with the name of an added one, {clashes[0]!r}")
        try:
            own = [pa.field(name, arrow_type(kind)) for name, kind in self.columns.items()]
        except ValueError as error:
            raise PayloadError(f"own columns of unknown types: {error}") from error
        added_id = [pa.field("id", pa.string())] if layout.adds_id(self.columns) else []
        output = pa.string() if output_type is None else output_type
        added = [
            pa.field(layout.keep.output, output),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("truncated", pa.bool_()),
        ]
        self.schema = pa.schema([*own, *added_id, *added])

    @classmethod
    def of(cls, spec: JobSpec, output_type: Any = None) -> "ResultTable":
        """Return the columns of a job's results."""
        return cls(ResultLayout.of(spec), spec.columns, output_type)

    def widened(self, misfit: ColumnMisfit) -> "ResultTable":
        """Return the same columns and those of the misfit, of types for all of their values."""
        return ResultTable(self.layout, widen(self.columns, misfit), self._output_type)

    @property
    def is_typed(self) -> bool:
        """Whether outputs have an Arrow type of their own."""
        return self._output_type is not None

    def fit(
        self, rows: Sequence[ResultRow], to_cell: Callable[[Json], str | None] = as_text
    ) -> tuple["ResultTable", pa.Table]:
        """Return the columns, widened as the values of some rows require (else this object), and the table of these.

        Args:
            rows: of the results.
            to_cell: makes a text of an output that has no type.

        Raises:
            PayloadError, pyarrow.ArrowException, TypeError, ValueError: as for `build`.
        """
        table = self
        while True:
            try:
                return table, table.build(rows, to_cell)
            except ColumnMisfit as misfit:
                table = table.widened(misfit)

    def build(self, rows: Sequence[ResultRow], to_cell: Callable[[Json], str | None] = as_text) -> pa.Table:
        """Return the table of some rows.

        Raises:
            ColumnMisfit: own columns do not fit.
            PayloadError: columns of a fixed size would take too much memory for values that are not there.
            pyarrow.ArrowException, TypeError, ValueError: an output is not of the declared type.
        """
        own = self._own_columns(rows) if self.columns else []
        added = {
            "id": text_array([as_text(row.id) for row in rows]),
            self.layout.keep.output: self._outputs(rows, to_cell),
            "error_code": text_array([row.error.code if row.error else None for row in rows]),
            "error_message": text_array([as_text(row.error.message) if row.error else None for row in rows]),
            "truncated": column_array([row.truncated for row in rows], pa.bool_()),
        }
        names = self.schema.names[len(self.columns) :]
        return pa.table([*own, *(added[name] for name in names)], schema=self.schema)

    def _outputs(self, rows: Sequence[ResultRow], to_cell: Callable[[Json], str | None]) -> Any:
        outputs = [None if row.error else row.output if self.is_typed else to_cell(row.output) for row in rows]
        return column_array(outputs, self.schema.field(self.layout.keep.output).type)

    def _own_columns(self, rows: Sequence[ResultRow]) -> list[Any]:
        groups = groupby(rows, _source_of) if rows else [(None, rows)]
        schema = pa.schema([self.schema.field(number) for number in range(len(self.columns))])
        tables = (pa.table(self._cells_of(source, list(group)), schema=schema) for source, group in groups)
        return list(pa.concat_tables(tables).columns)

    def _cells_of(self, source: ArrowRows | None, rows: Sequence[ResultRow]) -> list[Any]:
        """Return the own columns of rows of one table, or of none."""
        known = source.types if source else {}
        unlike = (kind for name, kind in self._own_types() if known.get(name) != kind)
        _check_nulls(unlike, len(rows))
        return self._from_json(rows) if source is None else self._from_table(source, rows)

    def _own_types(self) -> Iterable[tuple[str, Any]]:
        return ((name, self.schema.field(number).type) for number, name in enumerate(self.columns))

    def _from_json(self, rows: Sequence[ResultRow]) -> list[Any]:
        values = [self.layout.cells(row, self.columns) for row in rows]
        cells = {name: [value.get(name) for value in values] for name in self.columns}
        misfits = {name for name, column in cells.items() if not fits(column, self.columns[name])}
        if misfits or not all(value.keys() <= self.columns.keys() for value in values):
            found = infer_columns(values)
            raise ColumnMisfit({n: kind for n, kind in found.items() if n not in self.columns or n in misfits})
        return [self._array(name, column) for name, column in cells.items()]

    def _from_table(self, source: ArrowRows, rows: Sequence[ResultRow]) -> list[Any]:
        batch = take_rows(source.batch, [row.own.number for row in rows if isinstance(row.own, ArrowRow)])
        columns = [self._converted(batch, name, kind) for name, kind in self._own_types()]
        name = self.layout.id_column_of(self.columns)
        if name is not None and self.layout.adds_id(batch.schema.names):
            ids = [as_text(row.id) if self.columns[name] == TEXT else row.id for row in rows]
            columns[list(self.columns).index(name)] = self._array(name, ids)
        return columns

    def _array(self, name: str, values: list[Json]) -> Any:
        kind = self.columns[name]
        target = arrow_type(kind)
        try:
            if kind in (TEXT, "bool", "int"):
                return column_array(values, target)
            if target == pa.string():
                return text_array(list(map(as_text, values)))
            return pa.array(values, target)
        except _NO_SUCH_VALUE:  # in a type of Arrow, or a large integer
            if target == pa.string():
                raise
            raise ColumnMisfit({name: JSON}) from None

    def _converted(self, batch: Any, name: str, target: Any) -> Any:
        if name not in batch.schema.names:
            return pa.nulls(len(batch), target)
        try:
            return convert(batch.column(name), target)
        except _NO_SUCH_VALUE:  # such as a large integer as a float
            if target == pa.string():
                raise
            raise ColumnMisfit({name: JSON}) from None


def _check_nulls(kinds: Iterable[Any], rows: int) -> None:
    """Check that nulls of these types fit into the memory: those of a fixed size take as much as values."""
    size = rows * sum(map(_fixed_bytes, kinds))
    if size > MAX_EXPANDED:
        raise PayloadError(f"{rows:,} rows of own columns without values take {size:,} bytes")


def _fixed_bytes(kind: Any) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _fixed_bytes(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _fixed_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(_fixed_bytes(field.type) for field in kind)
    return int(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else 8


def _source_of(row: ResultRow) -> ArrowRows | None:
    return row.own.rows if isinstance(row.own, ArrowRow) else None


def convert(column: Any, target: Any) -> Any:
    """Return a column in the type that the job declares for it: first its plain form, then that as the target.

    Raises:
        pyarrow.ArrowException, TypeError, ValueError, OverflowError: a value has no form in that type.
    """
    if column.type == target and is_valid(column):
        return column
    if target == pa.string() and not pa.types.is_string(plain_type(column.type)):
        return text_array(list(map(as_text, json_cells(column))))
    if isinstance(target, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(target, convert(column, target.storage_type))
    plain = plain_column(column, plain_type(target))
    try:
        return plain.cast(target)
    except pa.ArrowException:  # Arrow casts nothing to null, which a nested type may hold
        return pa.array(plain.to_pylist(), target)
