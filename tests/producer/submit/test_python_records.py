"""What a program may give as records: tables of all libraries, values that JSON lacks, and what is refused."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from common.errors import UsageError
from common.inputs.sampling import columns_of
from common.own_columns import KEEP_ALL, Keep
from common.records import Json, Record
from common.tasks import TASKS
from producer.submit.python_records import python_builder, records_from_python, split_records_arg

COLUMNS: dict[str, list[Any]] = {"id": ["a", "b", "c"], "body": ["one", "two", "three"], "stars": [5, 3, 1]}
EXPECTED = [("a", "one"), ("b", "two"), ("c", "three")]


def made(value: Any, task: str = "fill-mask", column: str | None = None, id_column: str | None = None) -> list[Record]:
    paths, values = split_records_arg(value)
    assert paths == ()
    found = records_from_python(values, python_builder(TASKS[task], column, id_column, Keep()), 10_000)
    return list(found)


def polars_frame(columns: dict[str, list[Any]]) -> Any:
    return pytest.importorskip("polars").DataFrame(columns)


def rows_of(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))


TABLES: list[Callable[[dict[str, list[Any]]], Any]] = [
    pd.DataFrame,
    polars_frame,
    pa.table,
    lambda columns: pa.table(columns).to_batches()[0],
    datasets.Dataset.from_dict,
    lambda columns: datasets.Dataset.from_dict(columns).to_iterable_dataset(),
    dict,
    lambda columns: {name: np.array(cells) for name, cells in columns.items()},
]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_gives_its_rows(table: Callable[[dict[str, list[Any]]], Any]) -> None:
    found = made(table(COLUMNS), column="body")
    assert [(record.id, record.input, record.failure) for record in found] == [(*row, None) for row in EXPECTED]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_the_column_is_refused(table: Callable[[dict[str, list[Any]]], Any]) -> None:
    with pytest.raises(UsageError, match=r"has no column 'text'.*id, body, stars"):
        made(table(COLUMNS), column="text")
    with pytest.raises(UsageError, match="fill-mask needs text; the columns are: id, body, stars"):
        made(table(COLUMNS))


def test_rows_of_many_batches_come_in_order() -> None:
    texts = [f"text {number}" for number in range(2500)]
    for table in (pd.DataFrame({"text": texts}), pa.table({"text": texts})):
        assert [record.input for record in made(table)] == texts


def test_a_cell_of_a_data_frame_that_holds_nothing_fails_alone() -> None:
    frame = pd.DataFrame({"text": ["one", None, np.nan], "id": pd.array([7, 8, None], dtype="Int64")})
    found = made(frame)
    assert [record.id for record in found] == [7, 8, 2]
    assert [record.failure and record.failure.code for record in found] == [None, "missing_field", "missing_field"]


def test_only_the_columns_of_records_are_looked_at() -> None:
    others = {"raw": [b"\xff"], "own": [object()], "span": [pd.Period("2026-01")]}
    for table in (pd.DataFrame({"text": ["one"], **others}), {"text": ["one"], **others}):
        assert [(record.input, record.failure) for record in made(table)] == [("one", None)]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
        (pa.timestamp("us", "Mars/Base"), 1, "1970-01-01 00:00:00.000001Z"),
        (pa.date32(), 2**30, "<value out of range: 1073741824>"),
        (pa.duration("ns"), 5, "5"),
        (pa.binary(), b"abc", "abc"),
    ],
)
def test_every_type_of_an_arrow_table_is_read_as_of_parquet(kind: Any, value: Any, text: str) -> None:
    table = pa.table({"text": ["one"], "when": pa.array([value], kind)})
    [record] = made(table, id_column="when")
    assert (record.id, record.input, record.failure) == (text, "one", None)


def test_a_cell_of_an_arrow_table_that_is_not_utf8_fails_alone() -> None:
    first, second = made(pa.table({"text": pa.array([b"\xff", b"one"])}))
    assert first.failure and first.failure.code == "bad_encoding" and "record 0" in first.failure.message
    assert second.input == "one"


def own_of(value: Any) -> list[Any]:
    """The own columns of the records of a table, and their types as far as they are those of Arrow."""
    _, values = split_records_arg(value)
    builder = python_builder(TASKS["fill-mask"], keep=KEEP_ALL)
    return [record.own for record in records_from_python(values, builder, 10_000)]


def test_a_dataset_keeps_its_types() -> None:
    kinds = {"text": "string", "day": "date32", "price": "decimal128(5, 2)"}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()})
    cells = {"text": ["one", "two"], "day": [date(2026, 1, 2), None], "price": [Decimal("1.50"), None]}
    data = datasets.Dataset.from_dict(cells, features)
    for some in (data, data.select([0])):
        first, *_ = own_of(some)
        assert list(map(str, first.types.values())) == ["string", "date32[day]", "decimal128(5, 2)"]
        assert first.as_dict() == {"text": "one", "day": "2026-01-02", "price": "1.50"}
    shouting = data.with_transform(lambda rows: {**rows, "text": [text.upper() for text in rows["text"]]})
    assert [own["text"] for own in own_of(shouting)] == ["ONE", "TWO"]


def test_images_of_a_dataset_travel_with_their_records() -> None:
    data = datasets.Dataset.from_dict({"image": [Image.new("RGB", (2, 2))]}).cast_column("image", datasets.Image())
    [record] = made(data, task="image-classification")
    assert record.failure is None and record.blob and record.blob.startswith(b"\x89PNG")


def test_the_objects_of_a_data_frame_get_no_keys_of_others() -> None:
    metas = [{"a": 1}, {"b": [{"c": None}, {}]}, None]
    found = own_of(pd.DataFrame({"text": ["a", "b", "c"], "meta": metas}))
    assert [row["meta"] for row in found] == metas
    alike = own_of(pd.DataFrame({"text": ["a", "b"], "meta": [{"a": 1}, {"a": 2}]}))
    assert str(alike[0].types["meta"]) == "struct<a: int64>"
    vectors = own_of(pd.DataFrame({"text": ["a", "b"], "meta": [np.zeros(2), np.ones(2)]}))
    assert str(vectors[0].types["meta"]) == "list<item: double>"


@pytest.mark.parametrize("table", [pd.DataFrame({"text": []}), pa.table({"text": pa.array([], pa.string())})])
def test_a_table_without_rows_is_refused(table: Any) -> None:
    _, values = split_records_arg(table)
    builder = python_builder(TASKS["fill-mask"])
    with pytest.raises(UsageError, match="Empty input: records contains no records"):
        columns_of(records_from_python(values, builder, 10_000), builder)


def test_images_in_an_arrow_table_travel_with_their_records() -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(30)
    [record] = made(pa.table({"image": pa.array([{"bytes": png, "path": "a.png"}])}), task="image-classification")
    assert (record.input, record.blob, record.failure) == ("a.png", png, None)


def test_times_and_numbers_of_a_data_frame_are_json() -> None:
    frame = pd.DataFrame({"text": ["one"], "when": [pd.Timestamp("2026-01-02 03:04:05")], "id": [np.int64(4)]})
    assert made(frame)[0].id == 4
    assert made(frame, id_column="when")[0].id == "2026-01-02 03:04:05.000000"


@pytest.mark.parametrize("value", [pd.Series(["one", "two"]), pa.array(["one", "two"]), np.array(["one", "two"])])
def test_a_column_by_itself_gives_its_cells(value: Any) -> None:
    assert [record.input for record in made(value)] == ["one", "two"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("The capital of France is [MASK].", "Put a single record in a list"),
        ("a" * 5000, "Put a single record in a list"),
        ("a\0b", "Put a single record in a list"),
        ({"text": "one"}, "put a single record into a list"),
        ({}, "a single object"),
        ({"text": ["one"], "id": "a"}, "an object of columns"),
        ({"text": ["one"], "id": [1, 2]}, "the same length, found: text 1, id 2"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict(COLUMNS)), "choose one of 'train'"),
        (b"one", "found bytes"),
        (7, "found 7"),
        ([], "Empty input"),
    ],
)
def test_data_that_is_not_a_list_of_records_is_refused(value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        split_records_arg(value)


def test_a_text_by_itself_is_a_path_an_address_or_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    named = (str(tmp_path / "a.txt"), str(tmp_path / "*.txt"), "s3://bucket/a.txt", "file:///a.txt", "hf:org/name", "-")
    for name in named:
        assert split_records_arg(name) == ((name,), ())


def nested(depth: int) -> Json:
    value: Json = "x"
    for _ in range(depth):
        value = [value]
    return value


def test_a_first_record_that_is_none_fails_alone() -> None:
    first, second = made([None, "text"])
    assert first.failure and first.failure.code == "bad_json"
    assert second.input == "text"


UUID_TEXT = "12345678-1234-5678-1234-567812345678"


@pytest.mark.parametrize(
    ("id_", "text"),
    [
        (UUID(UUID_TEXT), UUID_TEXT),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02 03:04:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.50"), "1.50"),
        (timedelta(seconds=90), "0:01:30"),
        (b"abc", "abc"),
    ],
)
def test_an_id_that_json_lacks_is_written_as_text(id_: Any, text: str) -> None:
    for value in ((id_, "one"), {"id": id_, "text": "one"}):
        [record] = made([value])
        assert (record.id, record.input, record.failure) == (text, "one", None)


def test_a_record_that_has_no_json_form_fails_alone() -> None:
    own: dict[str, Any] = {"text": "one"}
    own["me"] = own
    bad = [own, {"text": nested(50_000)}, {"text": b"\xff"}, (b"\xff", "one"), (object(), "one"), {"text": {1j}}]
    found = made([*bad, "fine"])
    assert [record.failure and record.failure.code for record in found] == ["wrong_type"] * len(bad) + [None]
    assert [record.id for record in found] == list(range(len(bad) + 1))
