"""Outcomes as one Arrow table."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa

from common.payloads.part_files import cells_to_table, row_schema
from common.results import ResultRow, as_text, cells

#: Rows that are turned into columns at once.
_GROUP_ROWS = 8192


def to_table(rows: Iterable[ResultRow], output_type: Any) -> Any:
    """Return all rows as a table; `output_type` is the Arrow type of an output, or None for text and JSON text."""
    schema = row_schema(output_type)
    typed = output_type is not None
    found = (cells(row, row.output if typed else as_text(row.output)) for row in rows)
    groups = [schema.empty_table()]
    while group := list(islice(found, _GROUP_ROWS)):
        groups.append(cells_to_table(group, schema))
    return pa.concat_tables(groups)
