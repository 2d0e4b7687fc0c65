"""Own columns: the columns of a record's row that its result repeats, before what the job adds.

A row of CSV, JSON lines or Python is an object of JSON values. A row of an Arrow table is a reference to it
(`common.inputs.arrow_rows`), so that its values keep their types. A record without columns, such as a line of text, has
its input as its only one.
"""

import base64
import csv
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from common.errors import UsageError

#: What a job adds to each record besides its output, and the id where the record has none of its own.
ADDED = ("error_code", "error_message", "truncated")
#: Columns whose value is the id of a record, unless another one is named.
ID_COLUMNS = ("id", "custom_id")
OUTPUT_COLUMN = "output"


class TableRow(Protocol):
    """A row of an Arrow table."""

    def as_dict(self) -> Mapping[str, Any]:
        """Return its cells as JSON values."""

    @property
    def types(self) -> Mapping[str, Any]:
        """The columns of its table and their Arrow types."""

    @property
    def bytes(self) -> int:
        """Its approximate size."""


#: The columns of one record; None if its input is all it has.
Own = Mapping[str, Any] | TableRow | None


def own_columns(own: Own, input: Any, field: str) -> Mapping[str, Any]:
    """Return the own columns of a record as JSON values.

    Args:
        own: as the record or its result holds them.
        input: of the record.
        field: the name of an input that is a text.
    """
    if own is not None:
        return own if isinstance(own, Mapping) else own.as_dict()
    if isinstance(input, Mapping):
        return input
    if input is None:
        return {}
    return {"messages" if isinstance(input, list) else field: input}


@dataclass(frozen=True, slots=True)
class Keep:
    """Which of its own columns a result repeats."""

    names: tuple[str, ...] | None = ()  #: None: all of them
    output: str = OUTPUT_COLUMN  #: the name of the column that a job adds for its outputs

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return the kept ones of these columns, in their order, each once."""
        return [name for name in dict.fromkeys(names) if self.names is None or name in self.names]

    def own(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the kept columns of a row."""
        if self.names is None:
            return row
        return {name: row[name] for name in row if name in self.names}

    def clashes(self, names: Container[str]) -> list[str]:
        """Return the kept columns that have the name of an added one."""
        added = (self.output, *ADDED)
        return [name for name in added if name in names and (self.names is None or name in self.names)]

    def check(self, names: Sequence[str], label: str) -> None:
        """Check the columns of a whole input.

        Raises:
            UsageError: a kept column is missing, occurs twice, or has the name of an added one.
        """
        missing = [name for name in self.names or () if name not in names]
        if missing:
            found = ", ".join(map(str, names)) or "none"
            raise UsageError(f"{label} has no column {missing[0]!r} (--keep); it has: {found}.")
        counts = Counter(names)
        if doubled := next((name for name in self.chosen(names) if counts[name] > 1), None):
            raise UsageError(
                f"{label} has more than one column {doubled!r}; rename one of them, or choose others with --keep."
            )
        if clashes := self.clashes(names):
            raise UsageError(f"{label} has {self.describe_clash(clashes[0])}.")

    def describe_clash(self, name: str) -> str:
        """Return what is wrong with a column, and what helps."""
        cure = "name it differently with --output-column NAME" if name == self.output else "rename yours"
        return f"a column {name!r} already, and results add one of that name: {cure}, or leave yours out with --keep"


KEEP_NONE, KEEP_ALL = Keep(), Keep(None)


def parse_keep(text: str | Sequence[str], output: str = OUTPUT_COLUMN) -> Keep:
    """Return the columns that `--keep` names: `all`, `none`, or names separated by commas (quoted as in CSV).

    Raises:
        UsageError: a name is empty, or the output has the name of another added column.
    """
    if not output or output in ADDED:
        raise UsageError(f"--output-column: expected a name other than {', '.join(ADDED)}, found {output!r}.")
    if text in ("all", "none"):
        return Keep(None if text == "all" else (), output)
    names = next(csv.reader([text], skipinitialspace=True), []) if isinstance(text, str) else list(text)
    if not names or not all(names):
        raise UsageError(f"--keep: expected all, none, or the names of columns such as a,b,c; found {text!r:.80}.")
    return Keep(tuple(dict.fromkeys(names)), output)


class ColumnMisfit(Exception):
    """Values that do not fit their columns, or columns that the job did not know of."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        """Hold the columns and the types that were found."""
        super().__init__(f"values of these columns have other types: {dict(columns)}")
        self.columns = columns


# Types of columns: a word for those of JSON, or a serialized Arrow field

TEXT, JSON, NULL = "text", "json", "null"
_LIST, _ARROW = "list:", "arrow:"
_JSON_TYPES = {bool: "bool", float: "float", str: TEXT}
_PYTHON_TYPES = {
    kind: {found, type(None)} for kind, found in (("bool", bool), ("int", int), ("float", float), (TEXT, str))
}
_SCALARS = {"bool", "int", "float", TEXT, NULL}
_INT64 = range(-(2**63), 2**63)

#: What a type looks like, for those who check it without reading it.
TYPE_PATTERN = r"^(text|json|null|bool|int|float|list:(text|bool|int|float|null)|arrow:[A-Za-z0-9+/]{1,65536}=*)\Z"

#: The names of columns and their types, in order.
Columns = Mapping[str, str]


def infer_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the columns of some rows: a column whose values have different types, or are objects, is JSON text."""
    found: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            kind = _type_of(value)
            found[name] = kind if name not in found else _merged(found[name], kind)
    return found


def _type_of(value: Any) -> str:
    if value is None:
        return NULL
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if value in _INT64 else JSON
    if isinstance(value, list):
        kind = NULL
        for item in value:
            kind = _merged(kind, _type_of(item))
        return _LIST + kind if kind in _SCALARS else JSON
    return _JSON_TYPES.get(type(value), JSON)


def _merged(one: str, other: str) -> str:
    if other in (one, NULL):
        return one
    if one == NULL:
        return other
    if one.startswith(_LIST) and other.startswith(_LIST):
        kind = _merged(one.removeprefix(_LIST), other.removeprefix(_LIST))
        return _LIST + kind if kind in _SCALARS else JSON
    return "float" if {one, other} == {"int", "float"} else JSON


def fits(values: Sequence[Any], kind: str) -> bool:
    """Whether JSON values can be cells of a column of this type; Arrow may still refuse large integers."""
    if kind == JSON or kind.startswith(_ARROW) or set(map(type, values)) <= _PYTHON_TYPES.get(kind, set()):
        return True
    return all(value is None or _merged(kind, _type_of(value)) == kind for value in values)


def merge_columns(sources: Sequence[tuple[str, Columns]]) -> dict[str, str]:
    """Return the columns of all sources together.

    Args:
        sources: the name of each for messages, and its columns.

    Raises:
        UsageError: a column of Arrow has another type in another source, and no type holds the values of both.
    """
    merged: dict[str, str] = {}
    first: dict[str, str] = {}
    for label, columns in sources:
        for name, kind in columns.items():
            if name not in merged or merged[name] == NULL:
                merged[name], first[name] = kind, label
            elif kind not in (merged[name], NULL):
                both = _merged_across(name, merged[name], kind)
                if both is None:
                    raise UsageError(
                        f"The column {name!r} has the type {describe_type(merged[name])} in {first[name]}, and "
                        f"{describe_type(kind)} in {label}. Convert one of them, or leave it out with --keep."
                    )
                merged[name] = both
    return merged


def _merged_across(name: str, one: str, other: str) -> str | None:
    if not (one.startswith(_ARROW) or other.startswith(_ARROW)):
        return _merged(one, other)
    import pyarrow as pa  # only where a table has types of Arrow

    kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in map(arrow_type, (one, other))]
    if any(map(pa.types.is_decimal, kinds)) and any(map(pa.types.is_floating, kinds)):  # Arrow would round silently
        return None
    schemas = [pa.schema([pa.field(name, kind)]) for kind in kinds]
    try:
        return arrow_column(pa.unify_schemas(schemas, promote_options="permissive").field(0).type)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def widen(columns: Columns, misfit: ColumnMisfit) -> dict[str, str]:
    """Return the columns and those of the misfit, each with a type for all of its values."""
    found = {name: _merged(columns.get(name, kind), kind) for name, kind in misfit.columns.items()}
    return {**columns, **found}


def describe_type(kind: str) -> str:
    """Return the type in words."""
    return str(arrow_type(kind)) if kind.startswith(_ARROW) else kind.replace(_LIST, "list of ")


def arrow_column(kind: Any) -> str:
    """Return an Arrow type as the type of a column."""
    import pyarrow as pa

    return _ARROW + base64.b64encode(pa.schema([pa.field("", kind)]).serialize()).decode()


@lru_cache(maxsize=1024)  # of each column of every chunk
def arrow_type(kind: str) -> Any:
    """Return the Arrow type of a column.

    Raises:
        ValueError: it is none of the types above, or its Arrow type is damaged.
    """
    import pyarrow as pa

    scalars = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), TEXT: pa.string(), NULL: pa.string()}
    known = {JSON: pa.string(), **scalars, **{_LIST + name: pa.list_(scalar) for name, scalar in scalars.items()}}
    if kind.startswith(_ARROW):
        data = base64.b64decode(kind.removeprefix(_ARROW), validate=True)
        try:
            return pa.ipc.read_schema(pa.py_buffer(data)).field(0).type
        except (pa.ArrowException, OSError, IndexError) as error:
            raise ValueError(f"not the type of a column: {error}") from error
    if kind not in known:
        raise ValueError(f"not the type of a column: {kind!r:.80}")
    return known[kind]
