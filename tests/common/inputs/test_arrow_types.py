"""Parquet of every type is read, alone, nested and null; what is small in the file and huge in memory stays bounded."""

import json
import subprocess
import sys
from decimal import Decimal
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import PayloadError
from common.inputs import find_inputs
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import Source
from common.inputs.splitting import is_splittable, read_split, split_source
from common.payloads.part_files import decode_part
from common.records import Json, Record
from common.results import ResultLayout
from common.tasks import TASKS

FILL = TASKS["fill-mask"]
TYPES: dict[str, tuple[Any, Any, Json]] = {
    "far seconds": (pa.timestamp("ms"), 2**60, "<value out of range: 1152921504606846976>"),
    "nanoseconds": (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
    "time zone": (pa.timestamp("us", "Europe/Berlin"), 1, "1970-01-01 01:00:00.000001+0100"),
    "offset": (pa.timestamp("us", "+05:30"), 1, "1970-01-01 05:30:00.000001+0530"),
    "unknown time zone": (pa.timestamp("us", "Mars/Base"), 1, "1970-01-01 00:00:00.000001Z"),
    "date": (pa.date32(), 1, "1970-01-02"),
    "far date": (pa.date32(), 2**30, "<value out of range: 1073741824>"),
    "time": (pa.time64("ns"), 1, "00:00:00.000000001"),
    "duration": (pa.duration("ns"), 5, "5"),
    "decimal": (pa.decimal256(50, 2), Decimal("1.50"), "1.50"),
    "half": (pa.float16(), 1.5, 1.5),
    "not a number": (pa.float64(), float("nan"), None),
    "large whole number": (pa.uint64(), 2**64 - 1, 2**64 - 1),
    "bytes": (pa.large_binary(), "하".encode(), "하"),
    "fixed bytes": (pa.binary(2), b"ab", "ab"),
    "category": (pa.dictionary(pa.int8(), pa.string()), "a", "a"),
    "truth": (pa.bool_(), True, True),
}
NESTED = {
    "alone": (lambda kind: kind, lambda value: value),
    "list": (pa.list_, lambda value: [value, None]),
    "large list": (pa.large_list, lambda value: [value, None]),
    "fixed list": (lambda kind: pa.list_(kind, 2), lambda value: [value, None]),
    "struct": (lambda kind: pa.struct([("a", kind)]), lambda value: {"a": value}),
    "map": (lambda kind: pa.map_(pa.string(), kind), lambda value: [["k", value]]),
    "deep": (lambda kind: pa.list_(pa.struct([("a", pa.list_(kind))])), lambda value: [{"a": [value]}, None]),
}
READ = """
import json, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pandas":
            raise ModuleNotFoundError(name)
if sys.argv[3] == "without":
    sys.meta_path.insert(0, Without())
from common.inputs import find_inputs
from common.tasks import TASKS
columns = json.loads(sys.argv[2])
print(json.dumps({name: [None if record.failure else record.input for record in find_inputs(
    [sys.argv[1]], TASKS["fill-mask"], column=name).records(10**6)] for name in columns}))
"""


def child(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("pandas", ["with", "without"])
def test_parquet_of_every_type_gives_json_values(tmp_path: Path, pandas: str) -> None:
    columns, expected = {}, {}
    for name, (kind, value, json_value) in TYPES.items():
        for around, (nest, wrap) in NESTED.items():
            if around == "map" and pa.types.is_dictionary(kind):
                continue  # Arrow writes no such map
            leaf = kind.value_type if pa.types.is_dictionary(kind) and around != "alone" else kind
            cells = [wrap(value), None]
            if around == "map":
                cells = [[("k", value)], None]
            columns[f"{name} {around}"] = pa.array(cells, nest(leaf))
            expected[f"{name} {around}"] = [wrap(json_value), None]
    path = tmp_path / "types.parquet"
    pq.write_table(pa.table(columns), path)
    found = json.loads(child(READ, str(path), json.dumps(list(columns)), pandas))
    assert found == expected


def test_class_labels_of_datasets_are_read_by_their_names(tmp_path: Path) -> None:
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["negative", "positive"], "_type": "ClassLabel"},
        "tags": {"feature": {"names": ["O", "B-PER"], "_type": "ClassLabel"}, "_type": "List"},
    }
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = str(tmp_path / "labels.parquet")
    pq.write_table(table, path)
    assert values(path, "label") == ["positive", "negative", None]
    assert values(path, "tags") == [["O", "B-PER"], [], ["B-PER"]]


def values(path: str, column: str) -> list[Json]:
    task = type(FILL)("any", "", fields=((column,),))
    records = list(find_inputs([path], task).records(1000))
    return [record.input[column] if isinstance(record.input, dict) else record.input for record in records]


@pytest.mark.parametrize("features", [b"{", b"null", b'{"info": {"features": {"text": 5}}}'])
def test_other_metadata_of_that_name_does_no_harm(tmp_path: Path, features: bytes) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"]}).replace_schema_metadata({"huggingface": features}), path)
    assert values(path, "text") == ["a"]


# What is small in the file and huge in memory


def bomb(path: Path, rows: int = 20_000, size: int = 1_000_000) -> str:
    """Write a dictionary of one long text, and rows that are all this text, except for one."""
    texts = pa.array(["x" * size, "short [MASK]"])
    indices = pa.array([0] * (rows - 1) + [1], pa.int32())
    ids = pa.array(range(rows), pa.int64())
    table = pa.table({"id": ids, "text": pa.DictionaryArray.from_arrays(indices, texts)})
    pq.write_table(table, path, store_schema=False)
    return str(path)


BOUNDED = r"""
import pathlib, re, sys
from common.inputs import find_inputs
from common.tasks import TASKS
codes = {}
for record in find_inputs([sys.argv[1]], TASKS["fill-mask"]).records(int(sys.argv[2])):
    code = record.failure.code if record.failure else "ok"
    codes[code] = codes.get(code, 0) + 1
peak = int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
print(sorted(codes.items()), peak < 700_000, "pandas" in sys.modules)
"""


def test_a_dictionary_of_one_long_text_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.parquet", rows=2000)
    assert child(BOUNDED, path, "2000000").strip() == "[('ok', 2000)] True False"
    assert child(BOUNDED, path, "1000").strip() == "[('ok', 1), ('too_large', 1999)] True False"


def test_nested_long_texts_do_not_fill_the_memory(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 1_000_000]))
    lists = pa.ListArray.from_arrays(pa.array([0, 4999, 5000], pa.int32()), texts)
    path = tmp_path / "nested.parquet"
    pq.write_table(pa.table({"text": lists}), path, store_schema=False)
    assert child(BOUNDED, str(path), "2000000").strip() == "[('ok', 1), ('too_large', 1)] True False"


def test_texts_that_share_their_beginnings_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "delta.parquet"
    texts = ["x" * 1_000_000 + f"{number:05d}" for number in range(1500)]
    table = pa.table({"text": texts})
    pq.write_table(table, path, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    assert path.stat().st_size < 100_000
    assert child(BOUNDED, str(path), "1000").strip() == "[('too_large', 1500)] True False"
    assert not is_splittable(RecordBuilder(Source(str(path), "parquet"), FILL, None, None, multiple_inputs=False))


def test_a_row_that_is_too_large_keeps_its_id(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["x" * 5000, "short"]}), path)
    records = list(find_inputs([str(path)], FILL).records(1000))
    assert [(record.id, record.failure and record.failure.code) for record in records] == [
        ("a", "too_large"),
        ("b", None),
    ]


def test_a_row_that_is_too_large_is_shown_without_what_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"id": [b"\xff"], "text": ["x" * 5000]}), path)
    [record] = find_inputs([str(path)], FILL).records(1000)
    assert (record.id, record.failure and record.failure.code) == (0, "too_large")


def test_rows_of_file_splits_are_bounded_by_their_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.inputs.splitting._SPLIT_BYTES", 100_000)
    path = bomb(tmp_path / "bomb.parquet", rows=10, size=40_000)
    builder = RecordBuilder(Source(path, "parquet"), FILL, None, None, multiple_inputs=False)
    cuts = list(split_source(builder, 50_000, repeat(10), 10**9))
    records: list[Record] = [record for cut in cuts for record in read_split(cut.rows, FILL)]
    codes = [record.failure and record.failure.code for record in records]
    assert codes == [None, None, *["too_large"] * 7, None]
    assert [record.id for record in records] == list(range(10))


def test_a_part_whose_rows_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("common.payloads.part_files.MAX_EXPANDED", 200_000)
    rows = 10
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 50_000]))
    nothing = pa.nulls(rows, pa.string())
    table = pa.table(
        {
            "id": pa.array(map(str, range(rows))),
            "output": texts,
            "error_code": nothing,
            "error_message": nothing,
            "truncated": pa.array([False] * rows),
        }
    )
    path = tmp_path / "part.parquet"
    pq.write_table(table, path, store_schema=False)
    with pytest.raises(PayloadError, match="bytes"):
        decode_part(path.read_bytes(), "parquet", ResultLayout())
