"""Outcomes as one Arrow table."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from common.payloads.parts import row_cells, row_schema
from common.rows import Row, as_text

#: Rows that are turned into columns at once.
_GROUP_ROWS = 8192


def to_table(rows: Iterable[Row], output_type: Any) -> Any:
    """Return all rows as a table; `output_type` is the Arrow type of an output, or None for text and JSON text."""
    schema = row_schema(output_type)
    typed = output_type is not None
    cells: Iterator[Any] = (row_cells(row, row.output if typed or row.error else as_text(row.output)) for row in rows)
    groups = [schema.empty_table()]
    while group := list(islice(cells, _GROUP_ROWS)):
        columns = zip(*group, strict=True)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
        groups.append(pa.table(arrays, schema=schema))
    return pa.concat_tables(groups)
