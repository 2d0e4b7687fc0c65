"""Whatever the bytes, whatever the size: a record for each line, or one sentence that refuses the file."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UsageError
from common.inputs import find_inputs
from common.json_codec import to_json
from common.records import Record
from common.tasks import TASKS
from producer.submit.duplicate_ids import DuplicateIds, warn_of_duplicate_ids

ROOT = Path(__file__).parents[3]
FRAGMENTS = st.sampled_from(
    [b"\n", b"\r\n", b"\r", b'"', b",", b"\t", b"text", b"id", b"{", b"}", b"[", b":", b'{"text": "a"}', b"\xff",
     b"\\u", "가".encode(), b" ", b"\xef\xbb\xbf", b"1e999", b"\x00", b"\x1f\x8b", b"x" * 50]
)  # fmt: skip
CONTENT = st.one_of(st.binary(max_size=200), st.lists(FRAGMENTS, max_size=40).map(b"".join))


def read(data: bytes, format: str, limit: int = 40) -> list[Record] | None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            inputs = find_inputs([file.name], TASKS["fill-mask"], format=format)
            inputs.check(limit)
            return list(inputs.records(limit))
        except UsageError:
            return None


@settings(max_examples=400, deadline=None)
@given(CONTENT, st.sampled_from(["txt", "jsonl"]))
@example(b"\xef\xbb\xbf\n" + b"a" * 41, "txt")
def test_each_line_is_blank_or_one_record(data, format):
    records = read(data, format)
    if records is None:
        return
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    filled = [n for n, line in enumerate(lines) if line.decode(errors="replace").strip()]
    own = [r.id for r in records if not isinstance(r.input, dict)]
    assert len(records) == len(filled)
    assert set(own) <= set(filled)


@settings(max_examples=400, deadline=None)
@given(CONTENT, st.sampled_from(["csv", "tsv"]), st.sampled_from([b"text\n", b"id,text\n", b"text\tid\n", b""]))
def test_no_bytes_break_the_reading_of_tables(data, format, header):
    for record in read(header + data, format) or []:
        assert record.failure or record.input is not None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_reading_of_parquet(data):
    assert read(b"PAR1" + data, "parquet") is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(), st.sampled_from(["1", "a", "", "\ud800"]), st.booleans(), st.floats())))
def test_duplicates_are_those_that_a_set_of_json_texts_finds(ids):
    watch, seen = DuplicateIds(), set()
    for id_ in ids:
        text = to_json(id_)
        assert watch.add(id_) == (text in seen)
        seen.add(text)
    assert watch.count == len(ids) - len(seen)


def test_duplicates_are_reported_once_with_count_and_example():
    told: list[str] = []
    records = [Record(id_, "x") for id_ in ("a", "b", "a", "b", "a")]
    assert list(warn_of_duplicate_ids(records, told.append)) == records
    assert told == ['3 records have an id that came before; the first is "a".']
    assert list(warn_of_duplicate_ids(records[:2], told.append)) == records[:2]
    assert len(told) == 1


def test_the_watch_for_duplicates_stops_at_its_limit_and_says_so():
    watch = DuplicateIds(max_ids=5000)
    assert not any(watch.add(f"id {n}") for n in range(6000))
    assert watch.warning == "Only the first 5,000 ids were compared for duplicates."
    assert watch.add("id 4999")


def test_the_duplicate_check_takes_ordered_line_numbers_without_limit():
    watch = DuplicateIds(max_ids=10)
    assert not any(watch.add(n) for n in range(6000))
    assert (watch.add(5999), watch.add("5999"), watch.add(6000), watch.add(6000)) == (True, False, False, True)
    assert watch.warning == "2 records have an id that came before; the first is 5999."


MEASURE = """
import sys, tracemalloc
from common.tasks import TASKS
from common.inputs import find_inputs
from producer.submit.duplicate_ids import warn_of_duplicate_ids
tracemalloc.start()
records = find_inputs([sys.argv[1]], TASKS["fill-mask"]).records(100_000)
codes = [r.failure.code for r in warn_of_duplicate_ids(records, print) if r.failure]
print(sorted(set(codes)), len(codes), tracemalloc.get_traced_memory()[1], "pyarrow" in sys.modules)
"""


@pytest.mark.parametrize(
    ("name", "line", "lines", "failed"),
    [
        ("many.txt", "문장 하나 [MASK].\n", 200_000, "[] 0"),
        ("long.txt", "x" * 30_000_000 + "\n", 2, "['too_large'] 2"),
        ("long.csv", '"x""' * 7_500_000 + '"\nafter\n', 1, "['too_large'] 1"),
        ("open.csv", '"' + ("x" * 99 + "\n") * 200_000, 1, "['too_large'] 1"),
    ],
)
def test_memory_stays_bounded(tmp_path, name, line, lines, failed):
    path = tmp_path / name
    path.write_text("text\n" + line * lines)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    *outcome, peak, pyarrow = done.stdout.split()
    assert (" ".join(outcome), pyarrow) == (failed, "False")
    assert int(peak) < 12_000_000
