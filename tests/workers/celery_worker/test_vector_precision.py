"""The ranges of int8 vectors are the same for every chunk, whichever worker is first, waits, or runs alone."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from common.errors import Cancelled, ModelError
from common.jobs import JobSpec, new_job_id
from common.payloads.codec import decode_outcomes, encode_outcomes, iter_outcomes, output_type
from common.payloads.quantization import quantize, ranges_of, vectors_in
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Counts, Failure, Json, Outcome
from common.vector_ranges import NotedRanges
from tests.support.embeddings import embedding_type
from tests.support.ledger_jobs import leased
from workers.celery_worker.vector_precision import VectorPrecision
from workers.device.protocol import ChunkResult
from workers.leases import HeldLease

RANGES: Json = {"source": "ranges.json", "min": [-1.0] * 8, "max": [1.0] * 8}


def vectors_of(chunk: int, rows: int = 120) -> Any:
    return np.random.default_rng(chunk).normal(size=(rows, 8)).astype("float32")


def result_of(vectors: Any) -> ChunkResult:
    outcomes = [*map(Outcome, vectors), Outcome(failure=Failure("empty_text", "why"))]
    payload = encode_outcomes(range(len(outcomes)), range(len(outcomes)), outcomes, embedding_type(8))
    return ChunkResult(payload, Counts(len(vectors), 1), 0.5, {"device": "cpu"})


def outputs(result: ChunkResult) -> Any:
    return np.array([o.output for *_, o in iter_outcomes(decode_outcomes(result.payload)) if not o.failure])


class Chunks:
    """A job whose chunks are all leased and give known vectors."""

    def __init__(self, store: JobStore, ledger: Ledger, *chunks: Any, **params: Json) -> None:
        self.vectors, self.store, self.ledger = chunks, store, ledger
        self.ran: list[int] = []  #: chunks that were run for their ranges alone
        spec = JobSpec(new_job_id(), "embedding", params={"precision": "int8", **params}, created_at=time.time())
        store.create(spec)
        ledger.accept(spec.id, len(chunks), sum(map(len, chunks)))
        self.id = spec.id
        self.held = [HeldLease(leased(ledger, spec.id)) for _ in chunks]

    def precision(self, chunk: int) -> VectorPrecision:
        return VectorPrecision(self.store.job(self.id), self.held[chunk], self.ledger, self._run)

    def convert(self, chunk: int) -> ChunkResult:
        return self.precision(chunk).convert(result_of(self.vectors[chunk]))

    def _run(self, chunk: int) -> bytes:
        self.ran.append(chunk)
        return result_of(self.vectors[chunk]).payload

    def expected(self, chunk: int, *first: int) -> Any:
        """Return the vectors of a chunk, quantized with the ranges of some chunks."""
        ranges = ranges_of(np.concatenate([self.vectors[number] for number in first]), "")
        return quantize(self.vectors[chunk], "int8", ranges)


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], ChunkResult]], Future[ChunkResult]]]:
    """Run a function in another thread."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def test_the_first_chunk_notes_its_ranges_and_the_others_take_them(store: JobStore, ledger: Ledger) -> None:
    chunks = Chunks(store, ledger, *map(vectors_of, range(3)))
    for number in range(3):
        precision = chunks.precision(number)
        found = precision.convert(result_of(chunks.vectors[number]))
        np.testing.assert_array_equal(outputs(found), chunks.expected(number, 0))
        assert output_type(found.payload) == embedding_type(8, precision="int8")
        assert found.run_info == {"device": "cpu", "vectors": "int8, ranges from chunk 1 (120 records)"}
        assert precision.ranges_id == store.job(chunks.id).noted_ranges.id
    assert chunks.ran == []


def test_another_chunk_waits_for_the_worker_that_has_the_first(store: JobStore, ledger: Ledger, start: Any) -> None:
    chunks = Chunks(store, ledger, *map(vectors_of, range(2)))
    waiting = start(chunks.convert, 1)
    chunks.convert(0)
    np.testing.assert_array_equal(outputs(waiting.result(30)), chunks.expected(1, 0))
    assert chunks.ran == []


def test_a_chunk_does_not_depend_on_the_lease_of_another(store: JobStore, ledger: Ledger, start: Any) -> None:
    chunks = Chunks(store, ledger, *map(vectors_of, range(2)))
    waiting = start(chunks.convert, 1)
    ledger.release_chunk(chunks.held[0].lease)  # nobody has the first chunk now
    np.testing.assert_array_equal(outputs(waiting.result(30)), chunks.expected(1, 0))
    assert chunks.ran == [0]
    np.testing.assert_array_equal(outputs(chunks.convert(0)), chunks.expected(0, 0))


def test_a_chunk_that_waits_can_be_cancelled(store: JobStore, ledger: Ledger, start: Any) -> None:
    chunks = Chunks(store, ledger, *map(vectors_of, range(2)))
    waiting = start(chunks.convert, 1)
    chunks.held[1].cancel_token.cancel("stopping")
    with pytest.raises(Cancelled):
        waiting.result(30)


def test_two_that_measure_at_once_take_the_same_ranges(store: JobStore, ledger: Ledger, start: Any) -> None:
    chunks = Chunks(store, ledger, *map(vectors_of, range(2)))
    job, other = store.job(chunks.id), NotedRanges("b" * 32, ranges_of(vectors_of(7), "another worker"))
    precision = VectorPrecision(job, chunks.held[0], ledger, chunks._run)
    ledger.note_ranges(chunks.id, other)  # after the job was read
    found = precision.convert(result_of(chunks.vectors[0]))
    np.testing.assert_array_equal(outputs(found), quantize(chunks.vectors[0], "int8", other.ranges))
    assert precision.ranges_id == other.id


def test_small_chunks_are_measured_together(store: JobStore, ledger: Ledger) -> None:
    sizes = (40, 0, 50, 30, 40)
    chunks = Chunks(store, ledger, *(vectors_of(number, rows) for number, rows in enumerate(sizes)))
    found = chunks.convert(0)
    np.testing.assert_array_equal(outputs(found), chunks.expected(0, 0, 2, 3))
    assert found.run_info["vectors"] == "int8, ranges from chunks 1 to 4 (120 records)"
    assert chunks.ran == [1, 2, 3]


def test_a_chunk_without_vectors_notes_nothing(store: JobStore, ledger: Ledger) -> None:
    chunks = Chunks(store, ledger, vectors_of(0, 0), vectors_of(1))
    found = chunks.convert(0)
    assert output_type(found.payload) == embedding_type(8, precision="int8")
    assert ledger.noted_ranges(chunks.id) is None
    ledger.commit(chunks.held[0].lease, found.counts, {})
    np.testing.assert_array_equal(outputs(chunks.convert(1)), chunks.expected(1, 1))


def test_a_job_that_begins_with_many_bad_chunks_takes_the_first_vectors_it_has(store: JobStore, ledger: Ledger) -> None:
    chunks = Chunks(store, ledger, *[vectors_of(0, 0)] * 101, vectors_of(1))
    for lease in chunks.held[:-1]:
        ledger.commit(lease.lease, Counts(0, 1), {})
    found = chunks.convert(101)
    np.testing.assert_array_equal(outputs(found), chunks.expected(101, 101))
    assert chunks.ran == list(range(100))
    assert found.run_info["vectors"] == "int8, ranges from chunk 102 (120 records)"


def test_a_single_vector_has_no_ranges_and_fails_the_job(store: JobStore, ledger: Ledger) -> None:
    chunks = Chunks(store, ledger, vectors_of(0, 1), vectors_of(1, 0))
    with pytest.raises(ModelError, match=r"at least two vectors.*have 1.*-p ranges=FILE") as caught:
        chunks.convert(0)
    assert caught.value.code == "bad_param"


def test_ranges_of_a_file_are_taken_from_the_parameters(store: JobStore, ledger: Ledger) -> None:
    chunks = Chunks(store, ledger, vectors_of(0, 1), vectors_of(1), ranges=RANGES)
    for number in range(2):
        precision = chunks.precision(number)
        found = precision.convert(result_of(chunks.vectors[number]))
        expected = quantize(chunks.vectors[number], "int8", store.job(chunks.id).ranges)
        np.testing.assert_array_equal(outputs(found), expected)
        assert found.run_info["vectors"] == "int8, ranges from ranges.json" and precision.ranges_id is None
    assert ledger.noted_ranges(chunks.id) is None


@pytest.mark.parametrize("precision", ["float16", "binary", "ubinary"])
def test_other_precisions_need_no_ranges(store: JobStore, ledger: Ledger, precision: str) -> None:
    chunks = Chunks(store, ledger, vectors_of(0, 1), precision=precision)
    found = chunks.convert(0)
    np.testing.assert_array_equal(outputs(found), quantize(chunks.vectors[0], precision))
    assert (
        output_type(found.payload) == embedding_type(8, precision=precision) and found.run_info["vectors"] == precision
    )


@pytest.mark.parametrize("precision", ["float32", "float8", 7, None])
def test_other_jobs_keep_what_the_device_gave(store: JobStore, ledger: Ledger, precision: Json) -> None:
    chunks = Chunks(store, ledger, vectors_of(0), precision=precision)
    result = result_of(chunks.vectors[0])
    assert chunks.precision(0).convert(result) is result


def test_pieces_are_counted_as_pieces(store: JobStore, ledger: Ledger) -> None:
    chunks = Chunks(store, ledger, vectors_of(0), split_tokens=8)
    pieces = [{"start": 0, "end": 1, "vector": vector} for vector in chunks.vectors[0]]
    kind = embedding_type(8, split_tokens=8)
    payload = encode_outcomes([0, 1], [0, 1], [Outcome(pieces[:100]), Outcome(pieces[100:])], kind)
    found = chunks.precision(0).convert(ChunkResult(payload, Counts(2), 0.5, {}))
    np.testing.assert_array_equal(vectors_in(found.payload), chunks.expected(0, 0))
    assert found.run_info["vectors"] == "int8, ranges from chunk 1 (120 pieces)"
