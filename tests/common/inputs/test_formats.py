"""What each input format gives as records: inputs, ids, places. (What is wrong with them: the files beside.)"""

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.inputs import find_inputs
from common.own_columns import KEEP_ALL, own_columns
from common.records import Record
from common.tasks import TASKS

LIMIT = 1024 * 1024
FILL = TASKS["fill-mask"]
QA = TASKS["question-answering"]


def write(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def read(*inputs: str, task=FILL, limit=LIMIT, **options) -> list[Record]:
    found = find_inputs(inputs, task, **options)
    found.check(limit)
    return list(found.records(limit))


def pairs(records: list[Record]) -> list[tuple]:
    assert [r.failure for r in records] == [None] * len(records)
    return [(r.id, r.input) for r in records]


def test_txt_gives_a_record_a_line_and_blank_lines_keep_the_numbers(tmp_path):
    path = write(tmp_path / "a.txt", "\ufefffirst\r\n\n   \n서울은 [MASK]\n last, without a newline")
    assert pairs(read(path)) == [(0, "first"), (3, "서울은 [MASK]"), (4, " last, without a newline")]


def test_a_line_ends_at_a_newline_and_at_nothing_else(tmp_path):
    text = "one\x0btwo\x0cthree\x85four\u2028five\rsix"
    assert pairs(read(write(tmp_path / "a.txt", text + "\nnext\n"))) == [(0, text), (1, "next")]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.TXT.GZ", "a.txt"])
def test_gzip_is_unpacked(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress("하나\n둘\n".encode()))
    assert pairs(read(str(path))) == [(0, "하나"), (1, "둘")]


def test_jsonl_takes_strings_objects_and_their_own_ids(tmp_path):
    lines = [
        '"a text"',
        "",
        '{"id": "x", "text": "b"}',
        '{"custom_id": 7, "text": "c", "other": 1}',
        '{"id": null, "text": "d"}',
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert pairs(read(path)) == [(0, "a text"), ("x", "b"), (7, "c"), (4, "d")]


def test_jsonl_gives_the_fields_of_the_task_alone(tmp_path):
    row = {"question": "who?", "context": "Ann.", "other": 1}
    path = write(tmp_path / "a.ndjson", json.dumps(row))
    assert pairs(read(path, task=QA)) == [(0, {"question": "who?", "context": "Ann."})]


def test_jsonl_takes_a_list_as_a_chat(tmp_path):
    chat = [{"role": "user", "content": "안녕"}]
    path = write(tmp_path / "a.jsonl", f"{json.dumps(chat)}\n{json.dumps({'messages': chat})}\n")
    records = read(path, task=TASKS["text-generation"])
    assert pairs(records) == [(0, {"messages": chat}), (1, {"messages": chat})]


def test_lone_surrogates_of_json_stay_as_they_are(tmp_path):
    assert pairs(read(write(tmp_path / "a.jsonl", r'"\ud800 and \ud83d\ude00"'))) == [(0, "\ud800 and 😀")]


def test_csv_reads_quotes_newlines_and_large_fields(tmp_path):
    large = "x" * 300_000
    rows = [["id", "text", "note"], ["a", 'say "hi",\nyou', "1"], ["b", large, ""], ["", "c", "2"]]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    path = write(tmp_path / "a.csv.gz", "\ufeff" + out.getvalue())
    assert pairs(read(path)) == [("a", 'say "hi",\nyou'), ("b", large), (2, "c")]


def test_tsv_is_split_at_tabs(tmp_path):
    path = write(tmp_path / "a.tsv", "question\tcontext\nwho, then?\tAnn\n")
    assert pairs(read(path, task=QA)) == [(0, {"question": "who, then?", "context": "Ann"})]


def test_the_only_column_beside_the_id_is_the_text(tmp_path):
    path = write(tmp_path / "a.csv", "id,sentence,targets\n1,a [MASK],x\n2,b [MASK],\n")
    assert pairs(read(path)) == [("1", {"text": "a [MASK]", "targets": "x"}), ("2", "b [MASK]")]


def test_the_named_column_is_the_text_even_beside_one_called_text(tmp_path):
    path = write(tmp_path / "a.csv", "text,body,key\nno,yes,k\n")
    assert pairs(read(path, column="body", id_column="key")) == [("k", "yes")]


def test_the_named_column_of_a_jsonl_is_the_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "no", "body": "yes", "key": 5}')
    assert pairs(read(path, column="body", id_column="key")) == [(5, "yes")]


def test_tables_and_chats_in_cells_are_json(tmp_path):
    table = {"city": ["Paris", "서울"]}
    out = io.StringIO()
    csv.writer(out).writerows([["table", "query"], [json.dumps(table), "which?"]])
    path = write(tmp_path / "a.csv", out.getvalue())
    records = read(path, task=TASKS["table-question-answering"])
    assert pairs(records) == [(0, {"table": table, "query": "which?"})]


def test_a_csv_row_with_fewer_fields_lacks_the_last_ones(tmp_path):
    path = write(tmp_path / "a.csv", "text,targets\na\nb,x\n")
    assert pairs(read(path)) == [(0, "a"), (1, {"text": "b", "targets": "x"})]


def test_parquet_keeps_ids_and_nested_values(tmp_path):
    chats = [[{"role": "user", "content": "안녕"}], [{"role": "user", "content": "hi"}]]
    pq.write_table(pa.table({"id": [10, None], "messages": chats}), tmp_path / "a.parquet")
    records = read(str(tmp_path / "a.parquet"), task=TASKS["text-generation"])
    assert pairs(records) == [(10, {"messages": chats[0]}), (1, {"messages": chats[1]})]


def test_parquet_of_many_row_groups_comes_in_order(tmp_path):
    texts = [f"text {n}" for n in range(5000)]
    pq.write_table(pa.table({"text": texts, "other": range(5000)}), tmp_path / "a.parquet", row_group_size=700)
    assert pairs(read(str(tmp_path / "a.parquet"))) == list(enumerate(texts))


def test_parquet_values_that_json_lacks_become_text(tmp_path):
    import datetime
    import decimal

    day = datetime.datetime(2026, 1, 2, 3, 4, 5)
    columns = {"when": pa.array([day], pa.timestamp("ns")), "price": [decimal.Decimal("1.50")], "text": [b"bytes"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    assert pairs(read(path, id_column="price")) == [("1.50", "bytes")]
    assert pairs(read(path, id_column="when"))[0][0].startswith("2026-01-02 03:04:05")


def test_several_inputs_name_their_file_in_the_id(tmp_path):
    one, two = write(tmp_path / "a.txt", "a\n\nb\n"), write(tmp_path / "b.csv", "text\nc\n")
    assert pairs(read(one, two)) == [(f"{one}:0", "a"), (f"{one}:2", "b"), (f"{two}:0", "c")]


@pytest.mark.parametrize(
    ("format", "data"),
    [
        (None, b"one\ntwo\n"),
        ("jsonl", gzip.compress(b'"one"\n"two"\n')),
        ("csv", b"text\none\ntwo\n"),
    ],
)
def test_standard_input_is_read_in_its_format(monkeypatch, format, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert pairs(read("-", format=format)) == [(0, "one"), (1, "two")]
    assert not sys.stdin.closed


def test_parquet_comes_through_standard_input(monkeypatch):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["one"]}), buffer)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue())))
    assert pairs(read("-", format="parquet")) == [(0, "one")]


def test_the_format_can_be_said_against_the_extension(tmp_path):
    path = write(tmp_path / "a.log", '"one"\n')
    assert pairs(read(path, format="jsonl")) == [(0, "one")]
    with pytest.raises(UsageError, match=r"a\.log has no known extension .* --format"):
        read(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b'{"context": "c", "question": "q"}\n{"question": "q", "context": "c"}\n'),
        ("a.json", b'[{"context": "c", "question": "q"}, {"question": "q", "context": "c"}]'),
        ("a.csv", b"context,question\nc,q\n"),
    ],
)
def test_own_columns_keep_their_order(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    inputs = find_inputs([str(path)], TASKS["question-answering"], keep=KEEP_ALL)
    assert list(inputs.check(1000)) == ["context", "question"]
    found = [list(own_columns(record.own, record.input, "text")) for record in inputs.records(1000)]
    assert found == [["context", "question"], ["question", "context"]][: len(found)]
