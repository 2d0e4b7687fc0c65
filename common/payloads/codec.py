"""Payload codec: the records and outcomes of a chunk, as Arrow IPC streams compressed with zstd.

In: columns `id` and `input`, and `blob` where records come with files. Out: `position` (of the record in its chunk),
`id`, `output`, `error_code`, `error_message`, `truncated`. Ids are JSON text, so that 7 and "7" stay apart. `input` is
plain text when every record of the chunk is a text, else JSON text; `output` has the Arrow type that is
declared for it (`common.task_outputs`, or by a runner), else it is JSON text; the schema's metadata says which.

All streams are read by `common.payloads.safe_ipc`, since corrupted ones can crash Arrow's reader.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from common.display_text import replace_control_chars
from common.errors import PayloadError
from common.json_codec import to_json
from common.payloads.arrays import column_array, text_array, values_of
from common.payloads.safe_ipc import read_schema, read_stream, write_stream
from common.records import Counts, Failure, Json, Outcome, Record

#: Increased with every change of the columns; payloads of other versions are refused.
VERSION = b"2"
#: Far more than any payload needs; Redis takes values up to 512 MB.
MAX_BYTES = 256 * 1024 * 1024
#: How many bytes a payload may expand to, and how many rows it may have.
MAX_EXPANDED = 2 * MAX_BYTES
MAX_ROWS = 1_000_000
#: Types whose values take no more than their bytes; a null, a dictionary or a view can represent any number of values.
_PLAIN = (pa.types.is_string, pa.types.is_binary, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)

_IN = {"id": pa.string(), "input": pa.string(), "error_code": pa.string(), "error_message": pa.string()}
_BLOB = {"blob": pa.binary()}  # only if a record of the chunk has one
_OUT = {
    "position": pa.int32(),
    "id": pa.string(),
    "output": None,  # of any plain type
    "error_code": pa.string(),
    "error_message": pa.string(),
    "truncated": pa.bool_(),
}


def encode_records(records: Sequence[Record]) -> bytes:
    """Return the payload of a chunk's records.

    Raises:
        PayloadError: they are too large for one payload.
    """
    inputs = [record.input for record in records]
    as_text = all(map(_is_text, inputs))
    columns = [
        text_array([to_json(record.id) for record in records]),
        text_array(inputs if as_text else list(map(to_json, inputs))),
        *_failure_arrays([record.failure for record in records]),
    ]
    names = list(_IN)
    blobs = [record.blob for record in records]
    if any(blob is not None for blob in blobs):
        columns.append(column_array(blobs, pa.binary()))
        names += _BLOB
    return write_payload(pa.table(columns, names=names), "records", "text" if as_text else "json")


def decode_records(data: bytes) -> list[Record]:
    """Return the records of a payload, in order.

    Raises:
        PayloadError: the bytes are not a payload of records.
    """
    table, kind = _open(data, "records", _IN, _BLOB)
    ids, inputs, codes, messages = (table[name].to_pylist() for name in _IN)
    blobs = table["blob"].to_pylist() if "blob" in table.column_names else [None] * len(ids)
    return [
        Record(from_json(id_), text if kind == "text" else from_json(text), decode_failure(code, message), blob)
        for id_, text, code, message, blob in zip(ids, inputs, codes, messages, blobs, strict=True)
    ]


def encode_outcomes(
    positions: Sequence[int],
    ids: Sequence[Json],
    outcomes: Sequence[Outcome],
    output_type: pa.DataType | None,
) -> bytes:
    """Return the payload of outcomes; `positions` are the records' positions in their chunk.

    Raises:
        ValueError: the three differ in length.
        PayloadError: they are too large for one payload.
    """
    if not len(positions) == len(ids) == len(outcomes):
        raise ValueError(f"{len(positions)} positions, {len(ids)} ids, {len(outcomes)} outcomes")
    arrays = [
        column_array(positions, pa.int32()),
        text_array([to_json(id_) for id_ in ids]),
        _output_array(outcomes, output_type),
        *_failure_arrays([o.failure for o in outcomes]),
        column_array([o.truncated for o in outcomes], pa.bool_()),
    ]
    kind = "typed" if output_type is not None else "json"
    return write_payload(pa.table(arrays, names=list(_OUT)), "outcomes", kind)


def decode_outcomes(data: bytes) -> pa.Table:
    """Return the outcomes of a payload as an Arrow table with the columns named above.

    Raises:
        PayloadError: the bytes are not a payload of outcomes.
    """
    table, _ = _open(data, "outcomes", _OUT)
    return table


def replace_outputs(table: pa.Table, outputs: pa.Array) -> bytes:
    """Return the payload of a table of outcomes with other outputs, of a type of their own.

    Raises:
        PayloadError: they are too large for one payload.
    """
    return write_payload(table.set_column(list(_OUT).index("output"), "output", outputs), "outcomes", "typed")


def failures_by_code(data: bytes) -> dict[str, int]:
    """Return how many records of a payload of outcomes failed with each error code.

    Raises:
        PayloadError: the bytes are not a payload of outcomes.
    """
    return dict(Counter(code for code in decode_outcomes(data)["error_code"].to_pylist() if code is not None))


def iter_outcomes(table: pa.Table, *, arrays: bool = False) -> Iterator[tuple[int, Json, Outcome]]:
    """Yield (position, id, outcome) for each row of a table that `decode_outcomes` gave.

    Args:
        table: of outcomes.
        arrays: give vectors as numpy arrays; a list of 384 numbers takes 18 us.
    """
    kind = _declared_type(table.schema)
    typed = kind is not None
    columns = [values_of(table[n]) if n == "output" and typed and arrays else table[n].to_pylist() for n in _OUT]
    for position, id_, output, code, message, truncated in zip(*columns, strict=True):
        value = output if typed or output is None else from_json(output)
        yield position, from_json(id_), Outcome(value, decode_failure(code, message), truncated)


def output_type(data: bytes) -> pa.DataType | None:
    """Return the declared type of the outputs in a payload, None if they are JSON text. Reads the schema only.

    Raises:
        PayloadError: the bytes are not a payload of outcomes.
    """
    check_payload_size(data)
    return _declared_type(read_schema(data, lambda schema: _check_schema(schema, "outcomes", _OUT)))


def _declared_type(schema: pa.Schema) -> pa.DataType | None:
    return schema.field("output").type if schema.metadata.get(b"kind") == b"typed" else None


def count(outcomes: Sequence[Outcome]) -> Counts:
    """Return how many outcomes succeeded, failed, and were truncated."""
    failed = sum(o.failure is not None for o in outcomes)
    truncated = sum(o.truncated and o.failure is None for o in outcomes)
    return Counts(len(outcomes) - failed, failed, truncated)


def _output_array(outcomes: Sequence[Outcome], output_type: pa.DataType | None) -> pa.Array:
    if output_type is not None:
        return column_array([None if o.failure else o.output for o in outcomes], output_type)
    return text_array([None if o.failure else to_json(o.output) for o in outcomes])


def _failure_arrays(failures: Sequence[Failure | None]) -> list[pa.Array]:
    """Return the columns `error_code` and `error_message`."""
    codes = [failure.code if failure else None for failure in failures]
    messages = [replace_control_chars(failure.message) if failure else None for failure in failures]
    return [text_array(codes), text_array(messages)]


def _is_text(value: Json) -> bool:
    """Whether Arrow text can hold an input: it cannot hold a lone surrogate from a JSON escape, JSON text can."""
    if not isinstance(value, str):
        return value is None
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_failure(code: str | None, message: str | None) -> Failure | None:
    """Return the failure of the columns `error_code` and `error_message`, None if there is none."""
    return Failure(code, message or "") if code is not None else None


def from_json(text: str | None) -> Json:
    """Return the value of a JSON text in a payload, None for None.

    Raises:
        PayloadError: it is not JSON.
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"a payload holds text that is not JSON: {error}") from error


def write_payload(table: pa.Table, content: str, kind: str, *, remedy: str = "split the records", **more: str) -> bytes:
    """Return a payload with a chunk's rows.

    Args:
        table: with a row for each record.
        content: what they are, as messages call them.
        kind: of the columns.
        remedy: what helps, beside smaller chunks, where they are too large.
        more: further metadata of the schema.

    Raises:
        PayloadError: they are too large for one payload.
    """
    metadata = {"version": VERSION.decode(), "content": content, "kind": kind, **more}
    fits = table.nbytes <= MAX_EXPANDED and len(table) <= MAX_ROWS
    payload = write_stream(table.replace_schema_metadata(metadata)) if fits else b""
    if not fits or len(payload) > MAX_BYTES:
        raise PayloadError(
            f"A chunk's {content} take {table.nbytes:,} bytes in {len(table):,} rows, which is too large: at most "
            f"{MAX_EXPANDED:,} bytes ({MAX_BYTES:,} compressed) and {MAX_ROWS:,} rows. Submit in smaller chunks "
            f"(--chunk-size), or {remedy}."
        )
    return payload


def _open(
    data: bytes, content: str, columns: dict[str, Any], optional: dict[str, Any] | None = None
) -> tuple[pa.Table, str]:
    check_payload_size(data)

    def check(schema: pa.Schema) -> None:
        extended = {**columns, **(optional or {})}
        _check_schema(schema, content, extended if schema.names == list(extended) else columns)

    table = read_stream(data, check, MAX_EXPANDED, MAX_ROWS)
    return table, table.schema.metadata.get(b"kind", b"").decode(errors="replace")


def check_payload_size(data: bytes) -> None:
    """Raise `PayloadError` if a payload is larger than any may be."""
    if len(data) > MAX_BYTES:
        raise PayloadError(f"a payload of {len(data):,} bytes; at most {MAX_BYTES:,} are accepted")


def _check_schema(schema: pa.Schema, content: str, columns: dict[str, Any]) -> None:
    metadata = schema.metadata or {}
    if metadata.get(b"version") != VERSION or metadata.get(b"content") != content.encode():
        raise PayloadError(f"not a payload of {content}, version {VERSION.decode()}: {str(metadata)[:200]}")
    if schema.names != list(columns):
        raise PayloadError(f"expected the columns {list(columns)}, found {str(schema.names)[:200]}")
    for name, kind in columns.items():
        found = schema.field(name).type
        if found != kind if kind is not None else not _is_plain(found):
            raise PayloadError(f"column {name} must be {kind or 'of a plain type'}, found {str(found)[:200]}")


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_plain(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_list(kind) or (pa.types.is_fixed_size_list(kind) and kind.list_size > 0):
        return _is_plain(kind.value_type)
    return any(is_kind(kind) for is_kind in _PLAIN)


def overlay(payloads: Sequence[bytes], *, arrays: bool = False) -> dict[int, tuple[Json, Outcome]]:
    """Return position -> (id, outcome) of a chunk's commits, oldest first: later rounds replace earlier ones.

    Args:
        payloads: of outcomes.
        arrays: as for `iter_outcomes`.

    Raises:
        PayloadError: one of them is not a payload of outcomes.
    """
    outcomes: dict[int, tuple[Json, Outcome]] = {}
    for payload in payloads:
        for position, id_, outcome in iter_outcomes(decode_outcomes(payload), arrays=arrays):
            outcomes[position] = (id_, outcome)
    return outcomes


def positions_to_retry(payloads: Sequence[bytes]) -> list[int]:
    """Return the positions whose latest outcome is a failure: those that a retry runs again."""
    return sorted(position for position, (_, outcome) in overlay(payloads).items() if outcome.failure)
