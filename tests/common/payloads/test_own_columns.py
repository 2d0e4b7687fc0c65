"""Payloads of own columns: every type of Arrow comes back as it was, and none that could fill the memory is read."""

import datetime
import decimal
import json
from typing import Any

import pyarrow as pa
import pytest

from common.errors import PayloadError
from common.inputs.arrow_rows import ArrowRow, kept_rows
from common.own_columns import Keep, arrow_column
from common.payloads.own_columns import decode_own, encode_own
from common.payloads.result_tables import ResultTable
from common.payloads.safe_ipc import write_stream
from common.records import Outcome, Record
from common.results import ResultLayout, ResultRow

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)
#: name -> (type, values of three rows)
TYPES: dict[str, tuple[Any, list[Any]]] = {
    "text": (pa.string(), ["서울", None, ""]),
    "large": (pa.large_string(), ["a", None, "b"]),
    "view": (pa.string_view(), ["a", None, "a long text that is not stored inline"]),
    "bytes": (pa.binary(), [b"\xff\0", None, b""]),
    "fixed": (pa.binary(3), [b"abc", None, b"\0\0\0"]),
    "int8": (pa.int8(), [1, None, -128]),
    "uint64": (pa.uint64(), [2**64 - 1, None, 0]),
    "half": (pa.float16(), [0.5, None, -1.0]),
    "double": (pa.float64(), [0.1, None, float("inf")]),
    "flag": (pa.bool_(), [True, None, False]),
    "nothing": (pa.null(), [None, None, None]),
    "time": (pa.timestamp("us", "Asia/Seoul"), [NOW.replace(tzinfo=datetime.UTC), None, None]),
    "nanos": (pa.timestamp("ns"), [1, None, 2**62]),
    "day": (pa.date32(), [NOW.date(), None, datetime.date(1, 1, 1)]),
    "clock": (pa.time64("us"), [NOW.time(), None, None]),
    "span": (pa.duration("s"), [datetime.timedelta(seconds=7), None, None]),
    "decimal": (pa.decimal128(20, 4), [decimal.Decimal("12.3400"), None, decimal.Decimal("-1.0000")]),
    "word": (pa.dictionary(pa.int8(), pa.string()), ["red", None, "red"]),
    "list": (pa.list_(pa.int32()), [[1, 2], None, []]),
    "words": (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a", "a"], None, []]),
    "vector": (pa.list_(pa.float32(), 2), [[0.5, 1.0], None, [2.0, 3.0]]),
    "struct": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), [{"a": 1, "b": ["x"]}, None, {"a": None}]),
    "map": (pa.map_(pa.string(), pa.int64()), [[("k", 1)], None, []]),
    "uuid": (pa.uuid(), [b"0123456789abcdef", None, b"fedcba9876543210"]),
}  # fmt: skip


def table_of(names: list[str]) -> pa.Table:
    return pa.table([pa.array(values, kind) for kind, values in map(TYPES.get, names)], names=names)  # type: ignore[misc]


def records_of(table: pa.Table) -> list[Record]:
    [batch] = table.to_batches()
    rows = kept_rows(batch, Keep(None), table.schema)
    assert rows is not None
    return [Record(n, f"input {n}", own=ArrowRow(rows, n)) for n in range(len(batch))]


def own_table(records: list[Record], table: pa.Table) -> pa.Table:
    """The columns of results of these records, in the types of their source."""
    columns = {field.name: arrow_column(field.type) for field in table.schema}
    rows = [ResultRow(record.id, record.input, Outcome("out"), record.own) for record in records]
    return ResultTable(ResultLayout(), columns).build(rows).select(table.column_names)


@pytest.mark.parametrize("name", TYPES)
def test_a_column_of_every_type_comes_back_as_it_was(name: str) -> None:
    table = table_of([name])
    payload = encode_own(records_of(table))
    assert payload is not None
    own = decode_own(payload, ["input 0", "input 1", "input 2"])
    found = own_table([Record(n, f"input {n}", own=o) for n, o in enumerate(own)], table)
    assert found.schema.field(name).type == table.schema.field(name).type
    assert found.equals(table)


def test_columns_that_are_read_in_place_need_no_payload() -> None:
    table = table_of(list(TYPES))
    assert own_table(records_of(table), table).equals(table)


def test_all_columns_at_once_and_rows_without_them() -> None:
    table = table_of(list(TYPES))
    records = [Record("first", None), *records_of(table), Record("last", None)]
    own = decode_own(encode_own(records) or b"", [record.input for record in records])
    found = own_table([Record(n, None, own=o) for n, o in enumerate(own)], table)
    assert found.slice(1, 3).equals(table)
    assert all(column.null_count == 1 for column in found.slice(0, 1).columns)


def test_rows_of_several_batches_are_one_table() -> None:
    table = pa.table({"n": range(10)})
    records = [record for batch in table.to_batches(3) for record in records_of(pa.Table.from_batches([batch]))]
    chosen = [records[n] for n in (0, 1, 5, 3, 9)]
    own = decode_own(encode_own(chosen) or b"", [None] * 5)
    assert own_table([Record(0, None, own=o) for o in own], table)["n"].to_pylist() == [0, 1, 5, 3, 9]


ROWS: list[dict[str, Any]] = [
    {"id": 7, "review": "input 0", "tags": ["a", {"b": None}]},
    {"review": "input 1", "id": None, "other": "\ud800"},
    {"id": 2**70, "review": "input 2"},
]


def test_json_rows_come_back_with_their_keys_and_order() -> None:
    records = [Record(n, f"input {n}", own=row) for n, row in enumerate(ROWS)]
    payload = encode_own(records) or b""
    own = decode_own(payload, [record.input for record in records])
    assert [json.dumps(row) for row in own] == [json.dumps(row) for row in ROWS]


@pytest.mark.parametrize("value", [None, "input 1", "else", 3])
def test_what_the_input_says_is_stored_once_and_read_back(value: Any) -> None:
    long = "a long text " * 500
    rows: list[dict[str, Any]] = [{"text": long, "x": 1}, {"text": value, "x": long}]
    records = [Record(n, text, own=row) for n, (text, row) in enumerate(zip([long, "input 1"], rows, strict=True))]
    assert decode_own(encode_own(records) or b"", [long, "input 1"]) == rows


def test_a_table_whose_column_is_the_input_stores_it_once() -> None:
    texts = [f"{n} unlike any other text {n * 7919 % 1000}" for n in range(500)]
    table = pa.table({"n": range(500), "body": texts, "m": range(500)})
    [batch] = table.to_batches()
    rows = kept_rows(batch, Keep(None), table.schema)
    assert rows is not None
    records = [Record(n, text, own=ArrowRow(rows, n)) for n, text in enumerate(texts)]
    other = [Record(n, "x", own=ArrowRow(rows, n)) for n in range(500)]
    payload, larger = encode_own(records) or b"", encode_own(other) or b""
    assert len(payload) < len(larger) - 1000
    own = decode_own(payload, texts)
    assert own_table([Record(0, None, own=o) for o in own], table).equals(table)


def test_records_without_columns_have_no_payload() -> None:
    assert encode_own([Record(0, "a"), Record(1, None)]) is None


def test_text_that_is_not_utf8_gets_replacement_characters() -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")])
    table = pa.table({"x": broken})
    own = decode_own(encode_own(records_of(table)) or b"", [None])
    assert [row.as_dict() for row in own if row is not None and not isinstance(row, dict)] == [{"x": "a\ufffdb"}]


def test_rows_as_json_have_bytes_in_base64_and_times_as_text() -> None:
    [first, *_] = records_of(table_of(["bytes", "decimal", "time", "word", "struct"]))
    assert first.own is not None and not isinstance(first.own, dict)
    assert first.own.as_dict() == {
        "bytes": "/wA=",
        "decimal": "12.3400",
        "time": "2026-01-02 12:04:05.678901+0900",
        "word": "red",
        "struct": {"a": 1, "b": ["x"]},
    }


def forged(table: pa.Table, **metadata: str) -> bytes:
    return write_stream(
        table.replace_schema_metadata({"version": "2", "content": "own columns", "kind": "arrow"} | metadata)
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        forged(pa.table({"x": pa.nulls(2)})),
        forged(pa.table({"x": pa.array([[], []], pa.list_(pa.null()))})),
        forged(pa.table({"x": pa.array([{}, {}], pa.struct([]))})),
        forged(pa.table({"x": ["a", "b"]}), kind="json"),
        forged(pa.table({"row": ["[1]", "{}"]}), kind="json"),
        forged(pa.table({"row": ["{", "{}"]}), kind="json"),
        forged(pa.table({"x": ["a"]})),
        forged(pa.table({"x": ["a", "b"]}), content="records"),
        forged(pa.table({"x": ["a", "b"]}), input="text"),
        forged(pa.table({"x": ["a", "b"]}), input="0 x"),
        forged(pa.table({"x": ["a", "b"]}), input="9" * 5000 + " y"),
        forged(pa.table([pa.array([1, 2])] * 2, ["x", "x"])),
        forged(pa.table({"x": pa.array([(1, 2, 3)] * 2, pa.month_day_nano_interval())})),
    ],
)
def test_a_payload_that_somebody_made_up_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_own(data, ["1", "2"])


@pytest.mark.parametrize("inputs", [["\ud800", "2"], [{}, "2"], [1, 2], ["1"], []])
def test_a_payload_of_other_inputs_is_refused(inputs: list[Any]) -> None:
    with pytest.raises(PayloadError):
        decode_own(forged(pa.table({"x": ["a", "b"]}), input="0 y"), inputs)
