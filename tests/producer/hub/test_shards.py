"""Shards of results: whole chunks, sizes, and what does not fit together."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import HugqueueError
from common.records import Failure, Outcome
from common.results import ResultRow
from producer.hub.shards import write_shards


def chunk(number: int, size: int) -> list[ResultRow]:
    rows = [(f"{number}:{row}", hashlib.sha256(b"%d %d" % (number, row)).hexdigest()) for row in range(size)]
    return [ResultRow(name, text, Outcome(text.upper())) for name, text in rows]


def test_a_shard_holds_whole_chunks_in_order(tmp_path: Path) -> None:
    chunks = [(number, chunk(number, 10)) for number in range(3, 10)]
    [shard] = write_shards(chunks, lambda: None, tmp_path, 1 << 30)
    assert (shard.first, shard.end, shard.records, shard.failed) == (3, 10, 70, 0)
    rows = pq.ParquetFile(shard.path).read().to_pylist()
    assert [row["id"] for row in rows] == [f"{number}:{row}" for number in range(3, 10) for row in range(10)]


def test_shards_end_with_the_chunk_that_makes_them_large_enough(tmp_path: Path) -> None:
    chunks = [(number, chunk(number, 100)) for number in range(6)]
    one_each = list(write_shards(chunks, lambda: None, tmp_path, 1))
    assert [(shard.first, shard.end) for shard in one_each] == [(number, number + 1) for number in range(6)]
    size = one_each[0].path.stat().st_size
    again = [list(write_shards(chunks, lambda: None, tmp_path, 2 * size)) for _ in range(2)]
    assert again[0] == again[1]
    assert 1 < len(again[0]) < 6
    assert size < again[0][0].path.stat().st_size
    assert [shard.first for shard in again[0][1:]] == [shard.end for shard in again[0][:-1]]


def test_failed_records_are_counted(tmp_path: Path) -> None:
    rows = [ResultRow(0, "a", Outcome("A")), ResultRow(1, "b", Outcome(failure=Failure("no", "why")))]
    [shard] = write_shards([(0, rows)], lambda: None, tmp_path, 1)
    assert (shard.records, shard.failed) == (2, 1)
    assert pq.read_table(shard.path, use_threads=False)["error_code"].to_pylist() == [None, "no"]


def test_chunks_of_different_types_are_refused(tmp_path: Path) -> None:
    vectors = [ResultRow(0, "a", Outcome([1.0, 2.0]))]
    kinds = iter([pa.list_(pa.float32()), None])
    with pytest.raises(HugqueueError, match="Chunks 0 to 1 have columns of different types"):
        list(write_shards([(0, vectors), (1, chunk(1, 1))], lambda: next(kinds), tmp_path, 1 << 30))


def test_no_chunks_give_no_shard(tmp_path: Path) -> None:
    assert list(write_shards([], lambda: None, tmp_path, 1)) == []
    assert not list(tmp_path.iterdir())
