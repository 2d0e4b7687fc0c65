"""Records that cannot be read: each fails alone, with its place, and those around it go on."""

import gzip
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.inputs import find_inputs
from common.inputs.arrow_rows import ArrowRow
from common.own_columns import KEEP_ALL, arrow_column
from common.payloads.own_columns import decode_own, encode_own
from common.payloads.result_tables import ResultTable
from common.records import Record
from common.results import ResultLayout, ResultRow
from common.tasks import TASKS

FILL = TASKS["fill-mask"]


def read(path: Path, data: bytes | None = None, task=FILL, limit=1000, **options) -> list[Record]:
    if data is not None:
        path.write_bytes(data)
    return list(find_inputs([str(path)], task, **options).records(limit))


def failure_of(record: Record, path: Path) -> tuple[str, str]:
    assert record.failure is not None
    return record.failure.code, record.failure.message.replace(str(path), "FILE")


def test_a_line_that_is_not_utf8_fails_alone_with_the_position_of_the_byte(tmp_path):
    path = tmp_path / "a.txt"
    before, bad, after = read(path, b"\ngood\nnot so \xff good\nalso good\n")
    assert (before.input, after.input) == ("good", "also good")
    assert failure_of(bad, path) == ("bad_encoding", "FILE line 3: byte 0xff at position 8 of the line is not UTF-8")
    assert (bad.id, bad.input) == (2, "not so \ufffd good")


def test_a_line_that_is_not_json_fails_alone_with_line_and_column(tmp_path):
    path = tmp_path / "a.jsonl"
    before, bad, after = read(path, b'"good"\n{"text": oops}\n"also good"\n')
    assert (before.input, after.input) == ("good", "also good")
    assert failure_of(bad, path) == ("bad_json", "FILE line 2, column 10: not JSON: Expecting value")
    assert (bad.id, bad.input) == (1, '{"text": oops}')


@pytest.mark.parametrize(
    "text",
    [
        '{"text": NaN}',
        '{"text": [Infinity]}',
        '{"text": "a", "id": 1e999}',
        '{"text": ' + "9" * 5000 + "}",
        '{"text": ' + "[" * 100 + "]" * 100 + "}",
        "[" * 100_000,
        '{"text": "a"} x',
        "'text'",
        "42",
        "null",
        "true",
        "[1, 2]",
    ],
)
def test_a_json_value_that_is_not_a_record_fails_alone(tmp_path, text):
    path = tmp_path / "a.jsonl"
    before, bad, after = read(path, f'"good"\n{text}\n"also good"\n'.encode(), limit=1_000_000)
    assert (before.input, after.input) == ("good", "also good")
    code, message = failure_of(bad, path)
    assert code == "bad_json"
    assert message.startswith("FILE line 2")


def test_a_record_without_a_needed_field_names_those_it_has(tmp_path):
    path = tmp_path / "a.jsonl"
    bad, good = read(path, b'{"id": "x", "txt": "a", "text": null}\n{"text": "b"}\n')
    assert failure_of(bad, path) == ("missing_field", "FILE line 1: fill-mask needs text; the record has: id, txt")
    assert (bad.id, bad.input) == ("x", {"id": "x", "txt": "a", "text": None})
    assert good.input == "b"


def test_a_record_without_the_named_column_fails_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    bad, good = read(path, b'{"text": "a"}\n{"body": "b"}\n', column="body")
    assert failure_of(bad, path) == ("missing_field", "FILE line 1: no field 'body' (--column); the record has: text")
    assert good.input == "b"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_record_over_the_size_limit_fails_alone_and_one_at_it_does_not(tmp_path, name, ending):
    path = tmp_path / name
    data = ending.join([b"\xef\xbb\xbf" + b"a" * 1000, b"b" * 1001, b"c" * 300_000, b"d" * 1000])
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    at_limit, over, far_over, last = read(path)
    assert (at_limit.input, last.input) == ("a" * 1000, "d" * 1000)
    code, message = failure_of(over, path)
    assert (code, over.id, over.input) == ("too_large", 1, "b" * 200 + "…")
    assert message == "FILE line 2: the record is longer than 1,000 bytes (HUGQUEUE_MAX_RECORD_BYTES)"
    assert failure_of(far_over, path)[0] == "too_large"


def test_a_csv_row_that_is_not_utf8_fails_alone(tmp_path):
    path = tmp_path / "a.csv"
    good, bad, after = read(path, b'id,text\nx,a\ny,"\nb\xe9"\nz,c\n')
    assert (good.input, after.input) == ("a", "c")
    assert failure_of(bad, path) == ("bad_encoding", "FILE line 4: byte 0xe9 at position 2 of the line is not UTF-8")
    assert (bad.id, bad.input) == ("y", {"id": "y", "text": "\nb\ufffd"})


def test_a_csv_row_with_too_many_fields_fails_alone(tmp_path):
    path = tmp_path / "a.csv"
    good, bad, after = read(path, b"id,text\nx,a\ny,one, two\nz,c\n")
    assert (good.input, after.input) == ("a", "c")
    code, message = failure_of(bad, path)
    assert (code, bad.id) == ("bad_csv", "y")
    assert message.startswith("FILE line 3: 3 fields, but the header has 2")


def test_a_quote_that_is_never_closed_fails_the_row_in_which_it_opens(tmp_path):
    path = tmp_path / "a.csv"
    good, bad = read(path, b'text\n"two\nlines"\n"open\nb\nc\n')
    assert good.input == "two\nlines"
    what = "a quote in this row is never closed (the row extends to line 6)"
    assert failure_of(bad, path) == ("bad_csv", f"FILE line 4: {what}")
    assert (bad.id, bad.input) == (1, '"open')


def test_a_row_that_swallowed_others_fails_with_its_lines(tmp_path):
    path = tmp_path / "a.csv"
    bad, *others = read(path, b'id,text,more\n1,"Half,x\n2,b,x\n3,closed"\n4,d,x\n')
    assert [record.input for record in others] == ["d"]
    code, message = failure_of(bad, path)
    assert code == "bad_csv"
    assert message.startswith("FILE line 2: 2 fields, but the header has 3; a quote may not be closed")
    assert message.endswith("(the row extends to line 4)")


def test_a_short_row_on_one_line_has_empty_cells(tmp_path):
    [record] = read(tmp_path / "a.csv", b"text,other\na\n")
    assert record.input == "a"


def test_tsv_takes_quotes_as_they_are(tmp_path):
    rows = b'id\ttext\n1\tfirst\n2\t"Half a quote\n3\tthird\n4\tfourth"\n5\t"a ""b"""\n'
    records = read(tmp_path / "a.tsv", rows)
    assert [r.input for r in records] == ["first", '"Half a quote', "third", 'fourth"', '"a ""b"""']
    assert [r.id for r in records] == ["1", "2", "3", "4", "5"]


def test_quoting_can_be_said(tmp_path):
    [record] = read(tmp_path / "a.tsv", b'text\n"a\nb"\n', quoting="double")
    assert record.input == "a\nb"
    records = read(tmp_path / "a.csv", b'text\n"a\nb"\n', quoting="none")
    assert [record.input for record in records] == ['"a', 'b"']


@pytest.mark.parametrize(("name", "quoting"), [("a.jsonl", "none"), ("a.csv", "single")])
def test_quoting_that_does_not_fit_is_refused(tmp_path, name, quoting):
    (tmp_path / name).write_text('text\n"a"\n')
    with pytest.raises(UsageError, match="quoting"):
        find_inputs([str(tmp_path / name)], TASKS["fill-mask"], quoting=quoting)


def test_a_misplaced_quote_fails_its_row_and_the_next_rows_are_read(tmp_path):
    path = tmp_path / "a.csv"
    bad, good, swallowing, after = read(path, b'text\n"say "hi""\nb\n"open\nc\n"d"\ne\n')
    assert (good.input, after.input) == ("b", "e")
    assert failure_of(bad, path)[1].startswith("FILE line 2: ")
    code, message = failure_of(swallowing, path)
    assert code == "bad_csv"
    assert message.startswith("FILE line 4: ")
    assert message.endswith("(the row extends to line 6)")


@pytest.mark.parametrize(
    "row", [b'"' + b"x" * 3000 + b'"', b'"' + b"x\n" * 2000 + b'"', b"x" * 3000, b'a,"' + b"x" * 999 + b'\n","b"']
)
def test_a_csv_row_that_is_too_large_fails_alone(tmp_path, row):
    path = tmp_path / "a.csv"
    good, bad, after = read(path, b"text,b,c\na\n" + row + b"\nlast\n")
    assert (good.input, after.input) == ("a", "last")
    assert failure_of(bad, path)[0] == "too_large"
    assert failure_of(bad, path)[1].startswith("FILE line 3")


def test_a_cell_that_should_be_json_fails_alone(tmp_path):
    path = tmp_path / "a.csv"
    bad, good = read(path, b"messages\n[oops\nplain\n", task=TASKS["text-generation"])
    assert failure_of(bad, path) == (
        "bad_json",
        "FILE line 2: the column 'messages', column 2: not JSON: Expecting value",
    )
    assert good.input == {"messages": "plain"}


def test_a_record_with_the_name_of_an_added_column_keeps_its_other_columns(tmp_path):
    path = tmp_path / "a.jsonl"
    [_, bad] = read(path, b'{"text": "good"}\n{"id": 7, "output": 1, "truncated": 2}\n', keep=KEEP_ALL)
    assert failure_of(bad, path)[0] == "column_clash"
    assert (bad.id, bad.input, bad.own) == (7, None, {"id": 7})


def test_parquet_rows_fail_alone(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array([b"good", b"\xff", b"x" * 2000, None, "좋아".encode()], pa.binary())
    pq.write_table(pa.table({"id": list("abcde"), "text": texts}), path)
    good, encoding, large, missing, last = read(path)
    assert (good.input, last.input) == ("good", "좋아")
    assert failure_of(encoding, path) == ("bad_encoding", "FILE row 2: the column 'text' is not UTF-8")
    assert (encoding.id, encoding.input) == ("b", {"id": "b"})
    assert failure_of(large, path)[0] == "too_large"
    assert failure_of(missing, path)[0] == "missing_field"


def test_a_parquet_row_that_is_too_large_keeps_its_short_columns(tmp_path):
    days = [date(2026, 1, 1), None, date(2026, 1, 3)]
    table = pa.table({"id": [1, 2, 3], "text": ["a", "b" * 2000, "c"], "day": days})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", keep=KEEP_ALL)
    assert [record.failure is None for record in found] == [True, False, True]
    columns = {field.name: arrow_column(field.type) for field in table.schema}
    for own in ([record.own for record in found], decode_own(encode_own(found) or b"", [None] * 3)):
        rows = [ResultRow(record.id, record.input, None, o) for record, o in zip(found, own, strict=True)]
        kept = ResultTable(ResultLayout(), columns).fit(rows)[1].select(table.column_names)
        assert kept.equals(table.set_column(1, "text", [["a", None, "c"]]))


def test_a_text_that_many_rows_share_counts_for_each_of_them(tmp_path):
    """A chunk of them is no dictionary any more."""
    shared = pa.array(["x" * 5000]).take(pa.array([0] * 64)).dictionary_encode()
    pq.write_table(pa.table({"text": ["a"] * 64, "shared": shared}), tmp_path / "a.parquet")
    [first, *_] = read(tmp_path / "a.parquet", limit=10_000, keep=KEEP_ALL)
    assert isinstance(first.own, ArrowRow) and first.own.bytes >= 5000


def test_parquet_strings_that_are_not_utf8_fail_alone(tmp_path):
    path = tmp_path / "a.parquet"
    buffers = pa.array([b"good", b"\xff", b"fine"], pa.binary()).buffers()
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(3, buffers[1], buffers[2])}), path)
    good, bad, last = read(path)
    assert (good.input, last.input) == ("good", "fine")
    assert failure_of(bad, path)[0] == "bad_encoding"
