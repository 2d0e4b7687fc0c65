"""Result tables: no value of a record's own columns changes, and what has no place in a column's type widens it."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import PayloadError
from common.inputs.arrow_rows import ArrowRow, kept_rows
from common.output_types import OutputForm
from common.own_columns import Keep, arrow_column, merge_columns
from common.payloads.codec import overlay
from common.payloads.part_files import decode_part, encode_part
from common.payloads.result_tables import ResultTable
from common.records import Failure, Outcome
from common.results import ResultLayout, ResultRow

BAD = Outcome(failure=Failure("bad_csv", "line 3: a quote is never closed"))
DONE = Outcome("out")


def rows_of(array: Any) -> list[ResultRow]:
    """Results of records with the column `x`."""
    batch = pa.RecordBatch.from_arrays([array], ["x"])
    rows = kept_rows(batch, Keep(None), batch.schema)
    assert rows is not None
    return [ResultRow(n, f"input {n}", DONE, ArrowRow(rows, n)) for n in range(len(batch))]


def own_column(rows: list[ResultRow], kind: str) -> Any:
    return ResultTable(ResultLayout(), {"x": kind}).fit(rows)[1]["x"].combine_chunks()


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        (pa.array([1, 2**53]), pa.float64(), pa.array([1.0, 2.0**53])),
        (pa.array([1, 2**53 + 1]), pa.float64(), pa.array(["1", "9007199254740993"])),
        (pa.array([10**11], pa.timestamp("s")), pa.timestamp("ns"), pa.array(["5138-11-16 09:46:40"])),
        (pa.array([5]), pa.list_(pa.int64()), pa.array(["5"])),
    ],
)
def test_a_value_that_a_wider_type_cannot_hold_makes_the_column_text(values: Any, target: Any, expected: Any) -> None:
    assert own_column(rows_of(values), arrow_column(target)).equals(expected)


def test_integers_and_floats_of_several_files_are_floats() -> None:
    sources = [("a.parquet", {"x": arrow_column(pa.int64())}), ("b.parquet", {"x": arrow_column(pa.float64())})]
    assert merge_columns(sources) == {"x": arrow_column(pa.float64())}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([{}, None], pa.struct([])), ["{}", None]),
        (pa.array([[], None], pa.list_(pa.int8(), 0)), ["[]", None]),
        (pa.array([(1, 2, 3), None], pa.month_day_nano_interval()), ["[1, 2, 3]", None]),
    ],
)
def test_what_parquet_cannot_hold_is_json_text(values: Any, texts: list[Any]) -> None:
    rows = rows_of(values)
    assert rows[0].own is not None and not isinstance(rows[0].own, dict)
    kind = arrow_column(rows[0].own.types["x"])
    part = encode_part(rows, ResultTable(ResultLayout(), {"x": kind}, pa.string()), "parquet")
    assert pq.read_table(pa.py_buffer(part))["x"].to_pylist() == texts


BROKEN = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"a\xffbc")]
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (BROKEN, ["a\ufffdb", "c"]),
        (pa.DictionaryArray.from_arrays(pa.array([1, 0]), BROKEN), ["c", "a\ufffdb"]),
        (pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), BROKEN), [None, ["c"]]),
    ],
)
def test_text_that_is_not_utf8_is_never_written(values: Any, expected: list[Any]) -> None:
    found = own_column(rows_of(values), arrow_column(values.type))
    found.validate(full=True)
    assert found.to_pylist() == expected and found.type == values.type


def test_bytes_are_base64_in_json_at_any_depth() -> None:
    [row] = rows_of(pa.array([{"b": b"\xff", "l": [b"a"]}]))
    assert row.columns == {"x": {"b": "/w==", "l": ["YQ=="]}}


def test_an_excerpt_of_a_row_that_cannot_be_read_is_no_column() -> None:
    rows = [ResultRow(0, "a", DONE, {"body": "a"}), ResultRow(1, '"b"x,2', BAD)]
    found = ResultTable(ResultLayout(), {"body": "text"}).fit(rows)[1]
    assert found.column_names == ["body", "id", "output", "error_code", "error_message", "truncated"]
    assert found["body"].to_pylist() == ["a", None]
    lines = ResultTable(ResultLayout(), {"text": "text"}).fit(rows[1:])[1]
    assert lines["text"].to_pylist() == ['"b"x,2']


@pytest.mark.parametrize("name", ["id", "custom_id", "key"])
def test_a_record_without_an_id_gets_one_where_others_have_theirs(name: str) -> None:
    layout = ResultLayout(id_column="key" if name == "key" else None)
    rows = [
        ResultRow(0, "a", DONE, {"text": "a"}),
        ResultRow(7, "b", DONE, {"text": "b", name: 7}),
        ResultRow(None, "c", DONE, {"text": "c", name: None}),
        ResultRow(3, None, DONE),  # its input is gone
    ]
    for columns in ({"text": "text", name: "int"}, {"text": "text"}):  # known from the start, or only later
        assert ResultTable(layout, columns).fit(rows)[1][name].to_pylist() == [0, 7, None, 3]


def test_a_line_of_a_failed_record_has_no_output_even_if_its_excerpt_has_that_name() -> None:
    layout = ResultLayout(Keep(None, "text"))
    part = encode_part([ResultRow(0, "{bad", BAD)], ResultTable(layout, {}, pa.string()), "jsonl")
    form = OutputForm({"label": "string"})
    assert overlay([decode_part(part, "jsonl", layout, form)]) == {0: (0, BAD)}


HUGE = arrow_column(pa.list_(pa.int64(), 2**30))


@pytest.mark.parametrize(
    "columns",
    [
        {"x": "arrow:AAAA"},
        {"error_code": "text"},
        {"x": HUGE},
        {"y": HUGE},
        {"x": arrow_column(pa.binary(2**30))},
        {f"{n}": arrow_column(pa.struct([("a", pa.list_(pa.int64(), 2**20))])) for n in range(99)},
    ],
)
def test_columns_that_somebody_made_up_are_refused(columns: dict[str, str]) -> None:
    rows = [*rows_of(pa.array([1, 2])), ResultRow(2, "input", DONE, {"x": 3})]
    for some in (rows[:2], rows[2:]):
        with pytest.raises(PayloadError):
            encode_part(some, ResultTable(ResultLayout(), columns, pa.string()), "parquet")


def test_own_columns_that_somebody_made_up_are_refused() -> None:
    rows = [ResultRow(0, "input", DONE, {"output": "mine"}), ResultRow(1, "input", Outcome(["no text"]))]
    for row in rows:
        with pytest.raises(PayloadError):
            encode_part([row], ResultTable(ResultLayout(), {"x": "text"}, pa.string()), "parquet")


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("int", [2**63 - 1, None, -(2**63)], pa.array([2**63 - 1, None, -(2**63)])),
        ("int", [2**63, None], pa.array(["9223372036854775808", None])),
        ("int", [True, 1], pa.array(["true", "1"])),
        ("float", [0.5, 2**53], pa.array([0.5, 2.0**53])),
        ("float", [0.5, 2**53 + 1], pa.array(["0.5", "9007199254740993"])),
        ("list:float", [[0.5, 2**53 + 1]], pa.array(["[0.5, 9007199254740993]"])),
        ("text", ["a", "\ud800"], pa.array(["a", "\\ud800"])),
        ("text", ["a", 1], pa.array(["a", "1"])),
        ("bool", [True, None], pa.array([True, None])),
        ("null", [None, "a"], pa.array([None, "a"])),
    ],
)
def test_values_of_json_are_unchanged(kind: str, values: list[Any], expected: Any) -> None:
    rows = [ResultRow(n, "input", DONE, {"x": value}) for n, value in enumerate(values)]
    assert own_column(rows, kind).equals(expected)


@pytest.mark.parametrize(("kind", "expected"), [("text", ["own", "0", "1"]), ("int", ["own", "0", "1"])])
def test_a_row_of_a_table_without_ids_gets_its_id_where_others_have_theirs(kind: str, expected: list[str]) -> None:
    rows = [ResultRow("own", "a", DONE, {"x": 1, "id": "own"}), *rows_of(pa.array([2, 3]))]
    found = ResultTable(ResultLayout(), {"x": "int", "id": kind}).fit(rows)[1]
    assert found["id"].to_pylist() == expected and found["x"].to_pylist() == [1, 2, 3]
