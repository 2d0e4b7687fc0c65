"""Precision of vectors: those of a chunk are converted to the job's `precision` before they are written.

The device process gives float32. The ranges of `int8` and `uint8` are the same for all chunks, whoever runs them and
whenever: those that are parameters of the job, or else those of the vectors of its first chunks, which are noted in
Redis, once. Normally the worker that has the first chunk notes them while the others wait; but any worker can, since
it can run these chunks itself, so that no chunk ever depends on another lease.
"""

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from common.embedding_params import WITH_RANGES
from common.errors import Cancelled, ModelError
from common.jobs import Job
from common.payloads.quantization import quantize_outcomes, ranges_of, vectors_in
from common.queue.ledger import Ledger
from common.task_params import PRECISIONS
from common.vector_ranges import NotedRanges
from workers.device.protocol import ChunkResult
from workers.leases import HeldLease

#: Vectors whose ranges are good enough: with fewer, sentence-transformers warns.
_ENOUGH = 100
#: The first chunks that are looked at for that many vectors; most jobs have them in the first one.
_MAX_CHUNKS = 100
#: Seconds for which to wait for the worker that has the first chunk.
_PATIENCE, _POLL = 10.0, 0.1


class VectorPrecision:
    """The conversion of one chunk's vectors.

    Args:
        job: as it was when the chunk was leased.
        held: the chunk's lease.
        ledger: where ranges are noted.
        run: returns the float32 outcomes of another chunk of the job, as a payload.
    """

    def __init__(self, job: Job, held: HeldLease, ledger: Ledger, run: Callable[[int], bytes]) -> None:
        self._job = job
        self._held = held
        self._ledger = ledger
        self._run = run
        self.ranges_id: str | None = None  #: the noted ranges that the chunk may be committed with; None: any

    def convert(self, result: ChunkResult) -> ChunkResult:
        """Return the result of the chunk with its vectors in the job's precision.

        Raises:
            Cancelled: the chunk is no longer wanted.
            ModelError: `bad_param`, the job has no vectors for ranges.
            PayloadError, WorkerError: as `run` and the device process.
        """
        spec = self._job.spec
        precision = spec.params.get("precision", "float32")
        if spec.task != "embedding" or spec.format or precision not in PRECISIONS or precision == "float32":
            return result
        vectors, ranges = vectors_in(result.payload), spec.ranges
        if precision in WITH_RANGES and ranges is None and len(vectors):
            noted = self._job.noted_ranges or self._await_noted() or self._measure(vectors)
            self.ranges_id, ranges = noted.id, noted.ranges
        payload = quantize_outcomes(result.payload, precision, ranges)
        used = precision if ranges is None else f"{precision}, ranges from {ranges.source}"
        return replace(result, payload=payload, run_info={**result.run_info, "vectors": used})

    def _await_noted(self) -> NotedRanges | None:
        """Return the noted ranges; None if there are none and no other worker is about to note them."""
        job_id, is_first, end = self._job.id, self._held.lease.chunk == 0, time.monotonic() + _PATIENCE
        while True:
            noted = self._held.retry(lambda: self._ledger.noted_ranges(job_id))
            if noted or is_first or time.monotonic() > end:
                return noted
            if not self._held.retry(lambda: self._ledger.is_leased(job_id, 0)):
                return self._held.retry(lambda: self._ledger.noted_ranges(job_id))  # noted just before its commit
            if self._held.cancel_token.wait(_POLL):
                raise Cancelled

    def _measure(self, own: Any) -> NotedRanges:
        """Note the ranges of the job's first vectors, unless there are ranges by now; return those that count.

        Args:
            own: the vectors of this chunk, of shape (vectors, dimensions).
        """
        found, chunks, count = [], [], 0
        for chunk, vectors in self._first_chunks(own):
            found.append(vectors)
            chunks.append(chunk + 1)
            count += len(vectors)
            if count >= _ENOUGH:
                break
        if count < 2:
            raise ModelError(
                "bad_param",
                f"precision={self._job.spec.params['precision']} needs the ranges of at least two vectors, and the "
                f"first chunks of this job have {count}. Name a file with ranges: -p ranges=FILE.",
            )
        source = f"chunk {chunks[0]:,}" if len(chunks) == 1 else f"chunks {chunks[0]:,} to {chunks[-1]:,}"
        unit = "pieces" if "split_tokens" in self._job.spec.params else "records"
        ranges = ranges_of(np.concatenate(found), f"{source} ({count:,} {unit})")
        noted = self._held.retry(lambda: self._ledger.note_ranges(self._job.id, NotedRanges(uuid.uuid4().hex, ranges)))
        if noted is None:  # the job has ended
            raise Cancelled
        return noted

    def _first_chunks(self, own: Any) -> Iterable[tuple[int, Any]]:
        """Yield the job's first chunks that have vectors, with these: (vectors, dimensions); this one at last."""
        mine = self._held.lease.chunk
        first = range(min(self._job.chunks or 0, _MAX_CHUNKS))
        for chunk in (*first, *(() if mine in first else (mine,))):
            vectors = own if chunk == mine else vectors_in(self._run(chunk))
            if len(vectors):
                yield chunk, vectors
