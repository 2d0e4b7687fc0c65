"""Result tables: rows of results as an Arrow table, their own columns in the types that the job knows.

A job knows the types of JSON lines from their first records only. A later value that does not fit raises
`ColumnMisfit`; the caller writes again, with a wider type.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from common.inputs.arrow_rows import ArrowRow, ArrowRows, json_cells, plain_type
from common.jobs import JobSpec
from common.json_codec import as_text
from common.own_columns import JSON, ColumnMisfit, arrow_type, fits, infer_columns, widen
from common.payloads.arrays import column_array, text_array
from common.payloads.own_columns import is_valid, plain_column, take_rows
from common.records import Json
from common.results import ResultLayout, ResultRow


class ResultTable:
    """The columns of a job's results, and tables of them."""

    def __init__(self, layout: ResultLayout, columns: Mapping[str, str], output_type: Any = None) -> None:
        """Fix the columns.

        Args:
            layout: of the job's results.
            columns: own columns and their types.
            output_type: the Arrow type of an output; None for JSON text, or plain text if it is a text.
        """
        self.layout = layout
        self.columns = {name: columns[name] for name in layout.keep.chosen(columns)}
        self._output_type = output_type
        own = [pa.field(name, arrow_type(kind)) for name, kind in self.columns.items()]
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
        """Return the same columns, but one of a type for all of its values."""
        return ResultTable(self.layout, widen(self.columns, misfit), self._output_type)

    @property
    def is_typed(self) -> bool:
        """Whether outputs have an Arrow type of their own."""
        return self._output_type is not None

    def fit(self, rows: Sequence[ResultRow], to_cell: Callable[[Json], str | None] = as_text) -> pa.Table:
        """Return the table of some rows, its columns widened as their values require.

        Args:
            rows: of the results.
            to_cell: makes a text of an output that has no type.
        """
        table = self
        while True:
            try:
                return table.build(rows, to_cell)
            except ColumnMisfit as misfit:
                table = table.widened(misfit)

    def build(self, rows: Sequence[ResultRow], to_cell: Callable[[Json], str | None] = as_text) -> pa.Table:
        """Return the table of some rows.

        Raises:
            ColumnMisfit: an own column does not fit.
            pyarrow.ArrowException, TypeError, ValueError: an output is not of the declared type.
        """
        own: list[Any] = []
        if self.columns:
            groups = groupby(rows, _source_of) if rows else [(None, rows)]
            own = pa.concat_tables(self._own_table(source, list(group)) for source, group in groups).columns
        outputs = [None if row.error else row.output if self.is_typed else to_cell(row.output) for row in rows]
        errors = [row.error for row in rows]
        added = {
            "id": text_array([as_text(row.id) for row in rows]),
            self.layout.keep.output: column_array(outputs, self.schema.field(self.layout.keep.output).type),
            "error_code": text_array([error.code if error else None for error in errors]),
            "error_message": text_array([as_text(error.message) if error else None for error in errors]),
            "truncated": column_array([row.truncated for row in rows], pa.bool_()),
        }
        names = self.schema.names[len(self.columns) :]
        return pa.table([*own, *(added[name] for name in names)], schema=self.schema)

    def _own_table(self, source: ArrowRows | None, rows: list[ResultRow]) -> pa.Table:
        schema = pa.schema([self.schema.field(number) for number in range(len(self.columns))])
        if source is None:
            values = [self.layout.cells(row, self.columns) for row in rows]
            self._check_names(values)
            columns = [self._array(name, [value.get(name) for value in values]) for name in self.columns]
        else:
            batch = take_rows(source.batch, [row.own.number for row in rows if isinstance(row.own, ArrowRow)])
            columns = [self._converted(batch, name, schema.field(name).type) for name in self.columns]
        return pa.table(columns, schema=schema)

    def _check_names(self, values: Iterable[Mapping[str, Json]]) -> None:
        for value in values:
            if unknown := value.keys() - self.columns.keys():
                name = next(name for name in value if name in unknown)
                [kind] = infer_columns([{name: value[name]}]).values()
                raise ColumnMisfit(name, kind)

    def _array(self, name: str, values: list[Json]) -> Any:
        kind = self.columns[name]
        if not fits(values, kind):
            raise ColumnMisfit(name, infer_columns({name: value} for value in values)[name])
        target = arrow_type(kind)
        if target == pa.string():
            return text_array(list(map(as_text, values)))
        try:
            return pa.array(values, target)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # in a type of Arrow
            raise ColumnMisfit(name, JSON) from None

    def _converted(self, batch: Any, name: str, target: Any) -> Any:
        if name not in batch.schema.names:
            return pa.nulls(len(batch), target)
        try:
            return convert(batch.column(name), target)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # such as a large integer as a float
            if self.columns[name] == JSON:
                raise
            raise ColumnMisfit(name, JSON) from None


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
