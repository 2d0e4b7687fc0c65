"""Payload of own columns: beside the records of a chunk, what their results repeat. It never goes to a device process.

Rows of Arrow tables are columns of the same names, in types whose arrays are no larger than their values; other rows
are JSON text. A column whose values are the inputs themselves is left out: the payload of the records has them.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from common.errors import PayloadError
from common.inputs.arrow_rows import ArrowRow, ArrowRows, is_plain, plain_type
from common.json_codec import to_json
from common.own_columns import Own
from common.payloads.arrays import text_array
from common.payloads.codec import (
    MAX_EXPANDED,
    MAX_ROWS,
    VERSION,
    check_payload_size,
    from_json,
    write_payload,
)
from common.payloads.safe_ipc import read_stream
from common.records import Json, Record

_ROW = "row"  #: the column of JSON text
_PLACE = re.compile(r"[0-9]{1,9}\Z")
_CONTENT, _KIND, _INPUT = "own columns", b"kind", b"input"
_REMEDY = "keep fewer columns (--keep)"


def encode_own(records: Sequence[Record]) -> bytes | None:
    """Return the payload of the own columns of a chunk's records, None if all have none.

    Raises:
        PayloadError: they are too large for one payload.
    """
    owns = [record.own for record in records]
    if not any(own is not None for own in owns):
        return None
    inputs = [record.input for record in records]
    if any(isinstance(own, ArrowRow) for own in owns):
        table = gather(owns)
        name = _column_of_inputs(table, inputs) if table.num_columns > 1 else None
        if name is None:
            return write_payload(table, _CONTENT, "arrow", remedy=_REMEDY)
        place = table.column_names.index(name)
        return write_payload(table.drop_columns([name]), _CONTENT, "arrow", remedy=_REMEDY, input=f"{place} {name}")
    name = _key_of_inputs(owns, inputs)
    pairs = zip(owns, inputs, strict=True)
    texts = [None if own is None else to_json(_without(own, name, value)) for own, value in pairs]
    more = {} if name is None else {"input": name}
    return write_payload(pa.table([text_array(texts)], names=[_ROW]), _CONTENT, "json", remedy=_REMEDY, **more)


def decode_own(data: bytes, inputs: Sequence[Json]) -> list[Own]:
    """Return the own columns of a chunk's records.

    Args:
        data: the payload.
        inputs: of the records, in order.

    Raises:
        PayloadError: the bytes are not such a payload, or not of these records.
    """
    check_payload_size(data)
    table = read_stream(data, _check_schema, MAX_EXPANDED, MAX_ROWS)
    if len(table) != len(inputs):
        raise PayloadError(f"own columns of {len(table):,} records, expected {len(inputs):,}")
    left_out = table.schema.metadata.get(_INPUT)
    if table.schema.metadata[_KIND] == b"arrow":
        if left_out is not None:
            table = _with_inputs(table, left_out, inputs)
        batches = table.combine_chunks().to_batches(max_chunksize=MAX_ROWS)
        if len(batches) != 1:
            raise PayloadError(f"own columns of {len(table):,} records in {len(batches):,} batches")
        rows = ArrowRows(batches[0], {field.name: field.type for field in table.schema})
        return [ArrowRow(rows, number) for number in range(len(table))]
    name = None if left_out is None else left_out.decode(errors="replace")
    return [_decoded(text, name, value) for text, value in zip(table[_ROW].to_pylist(), inputs, strict=True)]


def gather(owns: Sequence[Own]) -> pa.Table:
    """Return the table of rows of Arrow, in plain types and in the columns of the first; other rows are null."""
    first = next(own for own in owns if isinstance(own, ArrowRow))
    schema = pa.schema([(name, plain_type(kind)) for name, kind in first.rows.types.items()])
    parts = []
    for rows, group in groupby(owns, lambda own: own.rows if isinstance(own, ArrowRow) else None):
        numbers = [own.number if isinstance(own, ArrowRow) else 0 for own in group]
        parts.append(_nulls(schema, len(numbers)) if rows is None else _plain(take_rows(rows.batch, numbers), schema))
    return pa.concat_tables(parts).combine_chunks()


def _nulls(schema: Any, count: int) -> pa.Table:
    return pa.table([pa.nulls(count, field.type) for field in schema], schema=schema)


def take_rows(batch: Any, numbers: Sequence[int]) -> Any:
    """Return these rows of a batch."""
    if numbers[-1] - numbers[0] + 1 == len(numbers):  # rows of a file, one after the other
        return batch.slice(numbers[0], len(numbers))
    return batch.take(pa.array(numbers))


def _plain(batch: Any, schema: Any) -> pa.Table:
    columns = [plain_column(batch.column(field.name), field.type) for field in schema]
    return pa.table(columns, schema=schema)


def plain_column(column: Any, kind: Any) -> Any:
    """Return a column in a plain type.

    Text that is not UTF-8 gets replacement characters; a list or struct that holds such text is null.

    Raises:
        pyarrow.ArrowException: the values of its type are not all values of the other.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    column = column if column.type == kind else column.cast(kind)
    if is_valid(column):
        return column
    if pa.types.is_nested(kind):
        whole = [number if is_valid(column.take(pa.array([number]))) else None for number in range(len(column))]
        return column.take(pa.array(whole, pa.int64()))
    values = column.cast(pa.large_binary()).to_pylist()
    return pa.array([None if value is None else value.decode(errors="replace") for value in values], kind)


def is_valid(column: Any) -> bool:
    """Whether all text in a column is UTF-8."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _column_of_inputs(table: pa.Table, inputs: Sequence[Json]) -> str | None:
    """Return the column that holds the inputs, None if there is none."""
    if not all(isinstance(value, str) for value in inputs):
        return None
    try:
        wanted = pa.chunked_array([text_array(inputs)])
    except UnicodeEncodeError:
        return None
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.equals(wanted):
            return str(name)
    return None


def _with_inputs(table: pa.Table, left_out: bytes, inputs: Sequence[Json]) -> pa.Table:
    place, _, name = left_out.decode(errors="replace").partition(" ")
    if not _PLACE.match(place) or name in table.column_names:
        raise PayloadError(f"own columns without their column {left_out[:80]!r}")
    try:
        return table.add_column(min(int(place), table.num_columns), name, text_array(inputs))
    except (TypeError, UnicodeEncodeError) as error:
        raise PayloadError("own columns whose inputs are not texts") from error


def _key_of_inputs(owns: Sequence[Own], inputs: Sequence[Json]) -> str | None:
    """Return a key under which rows hold their input, a text; None if there is none.

    A null stands for the input when a row is read again, so no row may have one there itself.
    """
    pairs = [(own, value) for own, value in zip(owns, inputs, strict=True) if isinstance(own, dict)]
    texts = [(own, value) for own, value in pairs if isinstance(value, str)]
    names = [name for name, cell in texts[0][0].items() if cell == texts[0][1]] if texts else []
    return next((name for name in names if not any(own.get(name, "") is None for own, _ in texts)), None)


def _without(own: Own, name: str | None, value: Json) -> Json:
    row = own if isinstance(own, dict) else {}
    return {**row, name: None} if isinstance(value, str) and row.get(name) == value else row


def _decoded(text: str | None, name: str | None, value: Json) -> Own:
    if text is None:
        return None
    row = from_json(text)
    if not isinstance(row, dict):
        raise PayloadError(f"own columns hold {text[:80]!r}, expected an object")
    if name is not None and name in row and row[name] is None and isinstance(value, str):
        row[name] = value
    return row


def _check_schema(schema: pa.Schema) -> None:
    metadata = schema.metadata or {}
    kind = metadata.get(_KIND)
    if (
        metadata.get(b"version") != VERSION
        or metadata.get(b"content") != _CONTENT.encode()
        or kind not in (b"arrow", b"json")
    ):
        raise PayloadError(f"not a payload of own columns, version {VERSION.decode()}: {str(metadata)[:200]}")
    if kind == b"json" and (schema.names != [_ROW] or schema.field(0).type != pa.string()):
        raise PayloadError(f"expected the column {_ROW!r} of text, found {str(schema)[:200]}")
    if len(set(schema.names)) < len(schema.names):
        raise PayloadError("own columns of which two have the same name")
    for field in schema:
        if not is_plain(field.type):
            raise PayloadError(f"column {field.name[:80]!r} has the type {str(field.type)[:200]}, which is not plain")
