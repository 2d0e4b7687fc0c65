"""Shards of results: whole chunks, sizes, and what does not fit together."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import HugqueueError
from common.jobs import JobSpec
from common.records import Failure, Outcome
from common.results import ResultRow
from producer.hub.shards import Columns, write_shards

SPEC = JobSpec(id="0123456789ab", task="text-classification", keep=None)


def columns(output_type: object = None, **types: str) -> Columns:
    return Columns(SPEC, lambda: output_type, types or {"text": "text"})


def chunk(number: int, size: int) -> list[ResultRow]:
    rows = [(f"{number}:{row}", hashlib.sha256(b"%d %d" % (number, row)).hexdigest()) for row in range(size)]
    return [ResultRow(name, text, Outcome(text.upper())) for name, text in rows]


def test_a_shard_holds_whole_chunks_in_order(tmp_path: Path) -> None:
    chunks = [(number, chunk(number, 10)) for number in range(3, 10)]
    [shard] = write_shards(chunks, columns(), tmp_path, 1 << 30)
    assert (shard.first, shard.end, shard.records, shard.failed) == (3, 10, 70, 0)
    rows = pq.ParquetFile(shard.path).read().to_pylist()
    assert [row["id"] for row in rows] == [f"{number}:{row}" for number in range(3, 10) for row in range(10)]


def test_shards_end_with_the_chunk_that_makes_them_large_enough(tmp_path: Path) -> None:
    chunks = [(number, chunk(number, 100)) for number in range(6)]
    one_each = list(write_shards(chunks, columns(), tmp_path, 1))
    assert [(shard.first, shard.end) for shard in one_each] == [(number, number + 1) for number in range(6)]
    size = one_each[0].path.stat().st_size
    again = [list(write_shards(chunks, columns(), tmp_path, 2 * size)) for _ in range(2)]
    assert [replace(shard, path=Path()) for shard in again[0]] == [replace(shard, path=Path()) for shard in again[1]]
    assert 1 < len(again[0]) < 6
    assert size < again[0][0].path.stat().st_size
    assert [shard.first for shard in again[0][1:]] == [shard.end for shard in again[0][:-1]]


def test_failed_records_are_counted(tmp_path: Path) -> None:
    rows = [ResultRow(0, "a", Outcome("A")), ResultRow(1, "b", Outcome(failure=Failure("no", "why")))]
    [shard] = write_shards([(0, rows)], columns(), tmp_path, 1)
    assert (shard.records, shard.failed) == (2, 1)
    assert pq.read_table(shard.path, use_threads=False)["error_code"].to_pylist() == [None, "no"]


def test_vectors_after_a_chunk_of_failures_have_one_length_in_all_later_shards(tmp_path: Path) -> None:
    kinds = iter([pa.list_(pa.float32()), pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
    found = Columns(replace(SPEC, task="embedding"), lambda: next(kinds), {"text": "text"})
    bad, good = Outcome(failure=Failure("no", "why")), Outcome([0.5, 1.0])
    rows = [(n, [ResultRow(n, "a", outcome)]) for n, outcome in enumerate([bad, bad, good, good])]
    shards = list(write_shards(rows, found, tmp_path, 1 << 30))
    assert [(shard.first, shard.end, shard.version) for shard in shards] == [(0, 2, 0), (2, 4, 1)]
    assert pq.read_schema(shards[1].path).field("output").type == pa.list_(pa.float32(), 2)


def test_a_chunk_that_widens_a_column_begins_a_shard(tmp_path: Path) -> None:
    values = [1, 2, 2.5, 3, None, "x"]
    rows = [[ResultRow(n, "a", Outcome("A"), {"text": "a", "score": value})] for n, value in enumerate(values)]
    rows.append([ResultRow(6, "a", Outcome("A"), {"text": "a", "more": True})])
    kept = columns(text="text", score="int")
    shards = list(write_shards(enumerate(rows), kept, tmp_path, 1 << 30))
    assert [(shard.first, shard.end, shard.version) for shard in shards] == [(0, 2, 0), (2, 5, 1), (5, 6, 2), (6, 7, 3)]
    assert [str(pq.read_schema(shard.path).field("score").type) for shard in shards] == ["int64", "double"] + 2 * [
        "string"
    ]
    assert kept.types == {"text": "text", "score": "json", "more": "bool"}
    [again] = write_shards(enumerate(rows), kept, tmp_path, 1 << 30)
    assert pq.read_table(again.path, use_threads=False)["score"].to_pylist() == ["1", "2", "2.5", "3", None, "x", None]
    known = Columns(SPEC, pa.string, kept.types, kept.version)
    assert [shard.version for shard in write_shards(enumerate(rows), known, tmp_path, 1 << 30)] == [3]


def test_an_output_of_another_type_is_refused(tmp_path: Path) -> None:
    rows = [ResultRow(0, "a", Outcome([1.0, 2.0]))]
    with pytest.raises(HugqueueError, match="Chunk 7: an output is not of the declared type"):
        list(write_shards([(7, rows)], columns(pa.int64()), tmp_path, 1))


def test_no_chunks_give_no_shard(tmp_path: Path) -> None:
    assert list(write_shards([], columns(), tmp_path, 1)) == []
    assert not list(tmp_path.iterdir())
