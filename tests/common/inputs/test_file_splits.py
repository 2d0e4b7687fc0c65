"""Reading in place: the ranges of a file hold the records that reading it from its beginning gives, and no others."""

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import PayloadError, StorageError, UsageError
from common.inputs import find_inputs
from common.inputs.file_split import FileSplit, SizedSplit, is_split
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source
from common.inputs.splitting import is_splittable, read_split, split_source, splittable_builders, splittable_bytes
from common.own_columns import KEEP_ALL, KEEP_NONE, Keep
from common.payloads.codec import encode_records
from common.records import Record
from common.storage.storage import open_storage
from common.tasks import TASKS

TASK = TASKS["fill-mask"]
MAX_RECORD_BYTES = 200  # bytes of a record


def cuts(
    name: str, format: str, *, records: int = 3, max_split_bytes: int = 50, column: str | None = None
) -> list[SizedSplit]:
    builder = RecordBuilder(Source(name, format), TASK, column, None, multiple_inputs=False)
    return list(split_source(builder, MAX_RECORD_BYTES, repeat(records), max_split_bytes))


def builder_of(name: str, format: str, keep: Keep = KEEP_NONE) -> RecordBuilder:
    return RecordBuilder(Source(name, format), TASK, "words", None, multiple_inputs=False, keep=keep)


def in_place(found: list[SizedSplit]) -> Iterator[Record]:
    for cut in found:
        records = read_split(FileSplit.decode(cut.rows.encode()), TASK)
        assert len(records) == cut.records
        yield from records


def from_the_beginning(name: str, format: str, column: str | None = None) -> list[Record]:
    return list(find_inputs([name], TASK, format=format, column=column).records(MAX_RECORD_BYTES))


LINES = st.lists(
    st.one_of(
        st.binary(max_size=30).map(lambda line: line.replace(b"\0", b"")),
        st.text(max_size=30).map(lambda text: text.replace("\0", "").encode(errors="replace")),
        st.sampled_from([b"", b" \t", "\u3000\u00a0".encode(), b"\x1c\x1f", b"\r", b"x" * 300, "한".encode() * 90]),
        st.text(max_size=9).map(lambda text: json.dumps({"id": 7, "text": text}).encode()),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("format", ["txt", "jsonl"])
@settings(max_examples=60, deadline=None)
@given(lines=LINES, end=st.sampled_from([b"\n", b"\r\n"]), bom=st.booleans(), last=st.booleans())
def test_ranges_of_lines_hold_the_records_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, format: str, lines: list[bytes], end: bytes, bom: bool, last: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "input"
    path.write_bytes(b"\xef\xbb\xbf" * bom + b"first" + end + end.join(lines) + end * last)
    assert list(in_place(cuts(str(path), format))) == from_the_beginning(str(path), format)


@pytest.mark.parametrize("group", [1, 4, 7, 100])
def test_ranges_of_parquet_hold_the_records_of_the_file(tmp_path: Path, group: int) -> None:
    path = tmp_path / "input.parquet"
    table = pa.table({"id": range(40), "words": [f"record {n} [MASK]" for n in range(40)], "other": ["x"] * 40})
    pq.write_table(table, path, row_group_size=group)
    found = cuts(str(path), "parquet", records=5, column="words")
    assert max(cut.records for cut in found) <= 5
    assert list(in_place(found)) == from_the_beginning(str(path), "parquet", "words")


def test_parquet_splits_are_sized_by_the_bytes_of_the_columns_read(tmp_path: Path) -> None:
    path = tmp_path / "input.parquet"
    texts, others = ([f"{n:03d}" + letter * 997 for n in range(100)] for letter in "ab")
    pq.write_table(pa.table({"words": texts, "other": others}), path, use_dictionary=False)
    found = cuts(str(path), "parquet", records=50, max_split_bytes=10_000, column="words")
    assert max(cut.records for cut in found) in (9, 10)
    builder = RecordBuilder(Source(str(path), "parquet"), TASK, "words", None, multiple_inputs=False)
    assert sum(cut.bytes for cut in found) == pytest.approx(splittable_bytes(builder), rel=0.01)


def test_parquet_of_very_large_row_groups_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "input.parquet"
    table = pa.table({"words": [f"{n:03d}" * 300 for n in range(100)]})
    pq.write_table(table, path, use_dictionary=False)
    monkeypatch.setattr("common.inputs.row_groups.GROUP_BYTES", 50_000)
    assert not is_splittable(builder_of(str(path), "parquet"))
    pq.write_table(table, path, use_dictionary=False, row_group_size=50)
    assert is_splittable(builder_of(str(path), "parquet"))


def test_parquet_of_many_columns_that_are_large_together_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "input.parquet")
    words = [f"{n:03d}" * 300 for n in range(100)]
    pq.write_table(pa.table({"words": words} | {f"{n}": words for n in range(9)}), path, use_dictionary=False)
    monkeypatch.setattr("common.inputs.row_groups._READ_GROUP_BYTES", 500_000)
    assert is_splittable(builder_of(path, "parquet"))
    assert is_splittable(builder_of(path, "parquet", Keep(("1", "2"))))
    assert not is_splittable(builder_of(path, "parquet", KEEP_ALL))


def test_no_range_is_larger_than_requested(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    found = cuts(str(path), "txt", records=7, max_split_bytes=60)
    assert sum(cut.records for cut in found) == 1000
    assert all(cut.records <= 7 and cut.rows.end - cut.rows.start <= 60 for cut in found)


def test_lines_after_an_oversized_line_are_in_another_split(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(b"a\n" + b"x" * 1_000_000 + b"\nb\n")
    found = cuts(str(path), "txt")
    assert sum(cut.rows.end - cut.rows.start for cut in found) < 2 * MAX_RECORD_BYTES
    codes = [record.failure and record.failure.code for record in in_place(found)]
    assert codes == [None, "too_large", None]


def test_ranges_are_read_at_an_address(tmp_path: Path) -> None:
    storage = open_storage(f"memory://{tmp_path.name}")
    storage.write("input.txt", b"".join(b"line %d\n" % n for n in range(20)))
    name = f"memory://{tmp_path.name}/input.txt"
    assert [record.input for record in in_place(cuts(name, "txt"))] == [f"line {n}" for n in range(20)]
    assert [record.input for record in from_the_beginning(name, "txt")] == [f"line {n}" for n in range(20)]
    storage.remove_all()


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text("one\ntwo\n")
    rows = cuts(str(path), "txt")[0].rows
    path.write_text("one\nthree\n")
    with pytest.raises(PayloadError, match="changed after the job was submitted: it had 8 bytes then and has 10"):
        read_split(rows, TASK)
    path.unlink()
    with pytest.raises(StorageError, match="there is no such file"):
        read_split(rows, TASK)


def test_a_file_that_changes_while_it_is_split_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text("one\ntwo\n")
    builder = RecordBuilder(Source(str(path), "txt"), TASK, None, None, multiple_inputs=False)
    found = split_source(builder, MAX_RECORD_BYTES, repeat(1), 1000)
    assert next(found).records == 1
    with path.open("a") as file:
        file.write("three\n")
    with pytest.raises(UsageError, match="changed while it was submitted"):
        list(found)


def test_gzip_and_csv_cannot_be_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "b.txt").write_bytes(b"text")
    assert not is_splittable(builder_of(str(tmp_path / "a.txt"), "txt"))
    assert is_splittable(builder_of(str(tmp_path / "b.txt"), "txt"))
    assert not is_splittable(builder_of(str(tmp_path / "b.txt"), "csv"))
    assert not is_splittable(builder_of("-", "txt"))


SOUND = {
    "source": "/x",
    "format": "txt",
    "start": 0,
    "end": 1,
    "first": 0,
    "size": 1,
    "version": "1",
    "max_bytes": 9,
    "column": None,
    "id_column": None,
    "multiple_inputs": False,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "csv"},
        {"start": -1},
        {"end": 1 << 40},
        {"start": 5, "end": 2},
        {"start": 0.5},
        {"first": True},
        {"column": 3},
        {"multiple_inputs": 1},
        {"more": 1},
        {"max_bytes": 0},
    ],
)
def test_a_forged_range_is_refused(wrong: dict[str, object]) -> None:
    assert FileSplit.decode(json.dumps(SOUND).encode())
    with pytest.raises(PayloadError, match="not a file split"):
        FileSplit.decode(json.dumps(SOUND | wrong).encode())


@pytest.mark.parametrize("text", [b"{}", b"[]", b"{", b"{" * 100_000, b'{"source": "/x"}', b'{"source": "\xff"}'])
def test_data_that_is_not_a_file_split_is_refused(text: bytes) -> None:
    with pytest.raises(PayloadError, match="not a file split"):
        FileSplit.decode(text)


def test_a_payload_of_records_is_not_a_file_split() -> None:
    assert not is_split(encode_records([Record(0, "{")]))
    assert is_split(FileSplit(**SOUND).encode())


@pytest.mark.parametrize(("name", "column"), [("in\udcff.jsonl", None), ("in.jsonl", "\udcff")])
def test_files_and_columns_whose_name_is_not_utf8_are_copied(tmp_path: Path, name: str, column: str | None) -> None:
    (tmp_path / name).write_text('{"text": "a"}\n')
    inputs = find_inputs([str(tmp_path / name)], TASK, id_column=column)
    assert splittable_builders(inputs, [str(tmp_path)]) == []
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "a"}\n')
    assert splittable_builders(find_inputs([str(plain)], TASK), [str(tmp_path)])
