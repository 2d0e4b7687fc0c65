"""Texts made by a template: of every format, read from the beginning or in place, with the columns that there are."""

import json
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.inputs import find_inputs
from common.inputs.file_split import FileSplit
from common.inputs.splitting import read_split, split_source, splittable_builders
from common.records import Record
from common.tasks import TASKS, find_task
from common.template import Template

TASK = TASKS["text-classification"]
ROWS = [
    {"id": "a", "title": "Good", "review text": "It works", "stars": 5, "text_pair": "one"},
    {"id": "b", "title": "", "review text": 'A "quote", and {braces}', "stars": 1, "text_pair": "two"},
    {"id": "c", "title": "한국어", "review text": "줄", "stars": 3, "text_pair": "three"},
]
TEMPLATE = "{title}: {review text}\n({stars} of 5)"
EXPECTED = [TEMPLATE.format(**row) for row in ROWS]


def write_delimited(path: Path, delimiter: str) -> None:
    def cell(value: object) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if delimiter == "," else text

    lines = [delimiter.join(map(cell, cells)) for cells in (ROWS[0], *(row.values() for row in ROWS))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable[[Path], object]] = {
    "csv": lambda path: write_delimited(path, ","),
    "tsv": lambda path: write_delimited(path, "\t"),
    "jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "json": lambda path: path.write_text(json.dumps(ROWS)),
    "parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


def read(path: Path, template: str, task: str = "embedding", **options: Any) -> list[Record]:
    inputs = find_inputs([str(path)], find_task(task), template=Template.parse(template), **options)
    inputs.check(10_000)
    return list(inputs.records(10_000))


def refused(path: Path, template: str, task: str = "embedding", **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        inputs = find_inputs([str(path)], find_task(task), template=Template.parse(template), **options)
        inputs.check(10_000)
    return str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_of_every_format_become_one_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"reviews.{kind}"
    WRITERS[kind](path)
    records = read(path, TEMPLATE)
    assert [(record.id, record.input, record.failure) for record in records] == [
        (row["id"], text, None) for row, text in zip(ROWS, EXPECTED, strict=True)
    ]


@pytest.mark.parametrize("kind", WRITERS)
def test_other_fields_of_the_task_still_come_from_their_columns(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"reviews.{kind}"
    WRITERS[kind](path)
    records = read(path, TEMPLATE, task="text-classification", id_column="stars")
    assert [record.input for record in records] == [
        {"text": text, "text_pair": row["text_pair"]} for row, text in zip(ROWS, EXPECTED, strict=True)
    ]
    assert [str(record.id) for record in records] == ["5", "1", "3"]


def test_a_template_may_name_the_column_that_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('text,messages\ngood,"[not json"\n')
    [record] = read(path, "Is this good? {text}", task="text-generation")
    assert (record.input, record.failure) == ("Is this good? good", None)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_plain_texts_have_one_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"in.{kind}"
    path.write_text("one\n\ntwo {b}\n" if kind == "txt" else '"one"\n\n"two {b}"\n')
    records = read(path, "query: {text}")
    assert [(record.id, record.input) for record in records] == [(0, "query: one"), (2, "query: two {b}")]
    assert "'body'" in refused(path, "query: {body}")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_column_that_a_table_lacks_is_refused_with_those_there_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"reviews.{kind}"
    WRITERS[kind](path)
    found = "no column 'body' (--template); it has: id, title, review text, stars, text_pair."
    assert found in refused(path, "{title} {body}")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_key_that_the_first_objects_lack_is_refused_with_those_there_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"reviews.{kind}"
    WRITERS[kind](path)
    found = "line 1: no field 'body' (--template); the record has: id, review text, stars, text_pair, title."
    assert found in refused(path, "{title} {body}")


def test_a_later_object_without_a_key_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows: list[Any] = [{"other": 1}, {"a": "x"}, {"b": 1}, {"a": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read(path, "[{a}]")
    assert [record.input for record in records] == [{"other": 1}, "[x]", {"b": 1}, "[]"]
    assert [record.failure and record.failure.code for record in records] == [
        "missing_field", None, "missing_field", None,
    ]  # fmt: skip


def test_lines_that_are_not_json_do_not_hide_an_unknown_column(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("not json\n" + '{"b": 1}\n' * 30)
    assert "line 2: no field 'a'" in refused(path, "{a}")
    path.write_text("not json\n" * 30)
    assert {record.failure and record.failure.code for record in read(path, "{a}")} == {"bad_json"}


def test_a_short_row_of_a_table_has_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("a,b\n1\n2,x\n")
    assert [record.input for record in read(path, "{a}-{b}")] == ["1-", "2-x"]


def test_a_column_named_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("a,a,b\n1,2,3\n")
    assert "more than one column 'a'" in refused(path, "{a}")
    assert [record.input for record in read(path, "{b}")] == ["3"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_long_template_makes_small_splits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"reviews.{kind}"
    WRITERS[kind](path)
    template = Template.parse("{title}" + "example " * 100)
    [builder] = splittable_builders(find_inputs([str(path)], TASK, template=template), [str(tmp_path)])
    assert [cut.records for cut in split_source(builder, 10_000, repeat(9), 2 * len(template.text))] == [2, 1]
    assert [cut.records for cut in split_source(builder, 10_000, repeat(9), 10)] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_the_texts_of_a_split_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["a" * 10] * 5}), path)
    else:
        path.write_text((json.dumps("a" * 10) if kind == "jsonl" else "a" * 10) + "\n")
        path.write_text(path.read_text() * 5)
    template = Template.parse("{text}" * 4)
    [builder] = splittable_builders(find_inputs([str(path)], TASK, template=template), [str(tmp_path)])
    [cut] = split_source(builder, 10_000, repeat(9), 10**6)
    monkeypatch.setattr("common.inputs.splitting._SPLIT_BYTES", 100)
    records = read_split(cut.rows, TASK, template)
    assert [record.failure and record.failure.code for record in records] == [None, None, *["too_large"] * 3]
    assert "smaller --chunk-size" in str(records[2].failure)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_in_place_the_texts_are_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"reviews.{kind}"
    template = Template.parse("query: {text}" if kind == "txt" else TEMPLATE)
    if kind == "txt":
        path.write_text("one\ntwo\nthree\n")
    else:
        WRITERS[kind](path)
    inputs = find_inputs([str(path)], TASK, template=template)
    [builder] = splittable_builders(inputs, [str(tmp_path)])
    splits = [cut.rows for cut in split_source(builder, 10_000, repeat(2), 10**6)]
    assert len(splits) == 2
    assert all(b"stars" not in split.encode() for split in splits)
    found = [record for split in splits for record in read_split(FileSplit.decode(split.encode()), TASK, template)]
    assert found == list(inputs.records(10_000))
