"""Own columns: which are kept, what clashes, and the types that JSON and tables give them."""

from typing import Any

import pyarrow as pa
import pytest

from common.errors import UsageError
from common.own_columns import (
    ColumnMisfit,
    Keep,
    arrow_column,
    arrow_type,
    describe_type,
    infer_columns,
    merge_columns,
    own_columns,
    parse_keep,
    widen,
)

NAMES = ["id", "review", "stars", "output"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", None),
        ("none", ()),
        ("review", ("review",)),
        ("stars, review", ("stars", "review")),
        ('"a, b",c', ("a, b", "c")),
        (["all the rest", "x"], ("all the rest", "x")),
        ("한국어,id,id", ("한국어", "id")),
    ],
)
def test_keep_names_columns(text: str | list[str], names: tuple[str, ...] | None) -> None:
    assert parse_keep(text).names == names


@pytest.mark.parametrize("text", ["", ",", "a,,b", []])
def test_an_empty_name_is_refused(text: str | list[str]) -> None:
    with pytest.raises(UsageError, match="--keep: expected all, none, or the names"):
        parse_keep(text)


@pytest.mark.parametrize("name", ["", "error_code", "truncated"])
def test_the_output_cannot_be_called_like_another_added_column(name: str) -> None:
    with pytest.raises(UsageError, match="--output-column"):
        parse_keep("all", name)


def test_kept_columns_stay_in_the_order_of_the_record() -> None:
    keep = Keep(("stars", "id"))
    assert keep.chosen(NAMES) == ["id", "stars"]
    assert keep.own({"stars": 1, "x": 2, "id": 3}) == {"stars": 1, "id": 3}


@pytest.mark.parametrize(
    ("keep", "names", "words"),
    [
        (Keep(None), NAMES, "a column 'output' already, .* --output-column NAME"),
        (Keep(None), ["truncated"], "a column 'truncated' already, .* rename yours"),
        (Keep(("output",)), NAMES, "a column 'output' already"),
        (Keep(None, "label"), ["label"], "a column 'label' already"),
        (Keep(("gone",)), NAMES, r"no column 'gone' \(--keep\); it has: id, review, stars, output"),
        (Keep(None), ["a", "b", "a"], "more than one column 'a'"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(keep: Keep, names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        keep.check(names, "in.csv")


@pytest.mark.parametrize("keep", [Keep(()), Keep(("id", "stars")), Keep(None, "label")])
def test_columns_that_are_not_kept_or_are_named_otherwise_do_not_clash(keep: Keep) -> None:
    keep.check(NAMES, "in.csv")


def test_an_input_is_the_only_column_of_a_record_without_others() -> None:
    assert own_columns(None, "text", "text") == {"text": "text"}
    assert own_columns(None, [{"role": "user"}], "text") == {"messages": [{"role": "user"}]}
    assert own_columns(None, {"question": "?", "context": "!"}, "text") == {"question": "?", "context": "!"}
    assert own_columns(None, None, "text") == {}
    assert own_columns({"a": 1}, "text", "text") == {"a": 1}


def test_the_types_of_json_columns() -> None:
    rows = [
        {"i": 1, "f": 1, "b": True, "t": "x", "n": None, "l": ["a"], "o": {"k": 1}, "m": 1, "big": 2**70},
        {"i": None, "f": 2.5, "b": False, "t": "y", "n": None, "l": [], "o": {}, "m": "one", "late": [1, 2]},
    ]
    assert infer_columns(rows) == {
        "i": "int", "f": "float", "b": "bool", "t": "text", "n": "null", "l": "list:text", "o": "json", "m": "json",
        "big": "json", "late": "list:int",
    }  # fmt: skip


def test_columns_of_several_inputs_are_those_of_all() -> None:
    found = merge_columns([("a", {"x": "int", "n": "null"}), ("b", {"y": "text", "x": "float"}), ("c", {"n": "bool"})])
    assert found == {"x": "float", "n": "bool", "y": "text"}


def test_types_of_tables_are_widened_where_arrow_can() -> None:
    sources = [("a.parquet", {"x": arrow_column(pa.int32())}), ("b.parquet", {"x": arrow_column(pa.int64())})]
    assert arrow_type(merge_columns(sources)["x"]) == pa.int64()


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()), pa.large_string()),
        (pa.decimal128(5, 2), pa.decimal128(9, 4), pa.decimal128(9, 4)),
        (pa.decimal128(5, 2), pa.float64(), None),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "Asia/Seoul"), None),
    ],
)
def test_types_of_two_files(one: Any, other: Any, both: Any) -> None:
    sources = [("a.parquet", {"x": arrow_column(one)}), ("b.parquet", {"x": arrow_column(other)})]
    if both is None:
        with pytest.raises(UsageError, match="'x' has the type"):
            merge_columns(sources)
    else:
        assert arrow_type(merge_columns(sources)["x"]) == both


def test_types_that_cannot_be_joined_are_named_with_their_files() -> None:
    sources = [("a.parquet", {"x": arrow_column(pa.int32())}), ("b.parquet", {"x": arrow_column(pa.list_(pa.int32()))})]
    with pytest.raises(UsageError, match=r"'x' has the type int32 in a.parquet, and list<.*> in b.parquet.*--keep"):
        merge_columns(sources)
    with pytest.raises(UsageError, match=r"'x' has the type text in a.csv, and int32 in b.parquet"):
        merge_columns([("a.csv", {"x": "text"}), ("b.parquet", {"x": arrow_column(pa.int32())})])


@pytest.mark.parametrize("kind", ["", "list:json", "arrow:x", "arrow:" + "QUJD" * 9, "list:list:int"])
def test_a_type_that_somebody_made_up_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"not the type|decoding|encoded|base64|padding"):
        arrow_type(kind)


def test_a_misfit_widens_its_column_only() -> None:
    columns = {"a": "int", "b": "text"}
    assert widen(columns, ColumnMisfit({"a": "float"})) == {"a": "float", "b": "text"}
    assert widen(columns, ColumnMisfit({"a": "text"})) == {"a": "json", "b": "text"}
    assert widen(columns, ColumnMisfit({"c": "bool"})) == {"a": "int", "b": "text", "c": "bool"}
    assert describe_type("list:int") == "list of int"
