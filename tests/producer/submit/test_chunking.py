"""How jobs are cut into chunks: small ones over all workers, large ones into growing chunks, never too many bytes."""

from itertools import islice

import pytest

from common.queue.heartbeats import Heartbeat
from common.records import Record
from producer.submit.chunking import CHUNK_BYTES, ChunkPlan, cut_chunks, plan_chunks


def texts(count: int, text: str = "x") -> list[Record]:
    return [Record(number, text) for number in range(count)]


def sizes(count: int, plan: ChunkPlan) -> list[int]:
    chunks = [chunk for chunk, _ in cut_chunks(iter(texts(count)), plan)]
    assert [record.id for chunk in chunks for record in chunk] == list(range(count))
    return [len(chunk) for chunk in chunks]


def beat(device: str) -> Heartbeat:
    return Heartbeat("worker", device, device, ("any",), slots=3, pid=1, host="here", started_at=0.0)


@pytest.mark.parametrize(
    ("records", "workers", "expected"),
    [
        (1, 8, [1]),
        (20, 8, [16, 4]),  # fewer than sixteen records are not worth a turn
        (160, 8, [20] * 8),
        (100, 1, [100]),
        (2047, 8, [256] * 7 + [255]),
        (2048, 8, [256] * 8),
    ],
)
def test_a_small_job_is_spread_over_the_workers(records: int, workers: int, expected: list[int]) -> None:
    assert sizes(records, ChunkPlan(256, growth=4, workers=workers)) == expected


def test_the_chunks_of_a_large_job_grow_to_a_bound() -> None:
    found = sizes(3000, ChunkPlan(4, growth=4))
    assert found == [4] * 64 + [8] * 64 + [16] * 139 + [8]


def test_an_explicit_chunk_size_is_used() -> None:
    plan = plan_chunks(7, 256, [beat("cpu")] * 3)
    assert sizes(30, plan) == [7, 7, 7, 7, 2]


@pytest.mark.parametrize(
    ("devices", "growth", "workers"),
    [([], 4, 1), (["cpu"] * 2, 4, 2), (["cuda:0", "cuda:1"], 16, 2), (["cuda:0", "cpu"], 4, 2)],
)
def test_chunks_grow_most_where_all_workers_have_a_gpu(devices: list[str], growth: int, workers: int) -> None:
    plan = plan_chunks(None, 256, [beat(device) for device in devices])
    assert plan == ChunkPlan(256, growth, workers)
    assert list(islice(plan.sizes(), 64 * 4))[-1] == min(256 * growth, 256 * 8)


def test_a_chunk_has_a_mebibyte_of_text_at_most_and_one_record_at_least() -> None:
    half, whole = "x" * (CHUNK_BYTES // 2), "x" * (CHUNK_BYTES + 1)
    records = [Record(0, half), Record(1, half), Record(2, half), Record(3, whole), Record(4, "é" * CHUNK_BYTES)]
    found = list(cut_chunks(iter(records), ChunkPlan(256, workers=4)))
    assert [[record.id for record in chunk] for chunk, _ in found] == [[0, 1], [2], [3], [4]]
    assert [held for _, held in found] == [CHUNK_BYTES, CHUNK_BYTES // 2, CHUNK_BYTES + 1, 2 * CHUNK_BYTES]


def test_no_more_is_read_ahead_than_a_chunk_for_each_worker() -> None:
    read = []

    def records():
        for record in texts(10_000):
            read.append(record.id)
            yield record

    next(cut_chunks(records(), ChunkPlan(10, workers=3)))
    assert len(read) <= 31
