"""The cells of an output in a CSV file: one for each field of a flat struct (`output_label`), else one."""

from collections.abc import Container
from typing import Any

from common.json_codec import as_text, to_jsonable
from common.records import Json


class OutputCells:
    """The columns of an output, and its cells in them.

    Args:
        kind: Arrow type of an output, None where it has none.
        name: of the column; of several, what their names begin with.
        taken: columns of the records themselves; if one has such a name, the output is JSON text in one column.
    """

    def __init__(self, kind: Any, name: str = "output", taken: Container[str] = ()) -> None:
        fields = {f"{name}_{field}": field for field in _flat_fields(kind)}
        self._fields = [] if any(column in taken for column in fields) else list(fields.values())
        self.names = tuple(fields) if self._fields else (name,)

    def of(self, output: Json, *, failed: bool = False) -> list[str | None]:
        """Return the cells of an output; those of a record that failed are empty. What is nested is JSON text."""
        if failed:
            return [None] * len(self.names)
        return [_cell(output.get(field)) for field in self._fields] if self._fields else [_cell(output)]


def _cell(value: Json) -> str | None:
    return as_text(to_jsonable(value) if isinstance(value, bytes) else value)


def _flat_fields(kind: Any) -> list[str]:
    """Return the fields of a struct that holds no other struct and no list, else nothing."""
    if kind is None:
        return []
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return []
    fields = [kind.field(number) for number in range(kind.num_fields)]
    return [] if any(pa.types.is_nested(field.type) for field in fields) else [field.name for field in fields]
