"""Whether a job fits into Redis: estimated while it is submitted, and refused before Redis is full."""

from common.errors import UsageError
from common.inputs.sources import ReadProgress
from common.jobs import JobSpec
from producer.submit.chunk_source import ChunkContent

#: Bytes of payloads after which there is something to estimate from.
_MIN_SAMPLE_BYTES = 512 * 1024
#: Redis takes about so many bytes for each byte of a payload.
_REDIS_OVERHEAD = 1.15
#: Bytes of one record's outcome, of tasks whose outcomes are all alike; others are about as large as their inputs.
_OUTCOME_BYTES = {"embedding": 1600}


class MemoryEstimate:
    """What a job whose payloads lie in Redis will take there, records and outcomes."""

    def __init__(self, spec: JobSpec, progress: ReadProgress, free: int | None) -> None:
        """Begin before the first chunk.

        Args:
            spec: the job.
            progress: how much of the inputs was read.
            free: bytes that Redis may still take; None: as many as there are.
        """
        self._progress = progress
        self._free_bytes = free if spec.store is None else None
        self._has_outcomes = spec.output is None
        self._outcome_bytes = _OUTCOME_BYTES.get(spec.task)
        self._written = self._outcomes = 0

    def add(self, content: ChunkContent, payload: bytes) -> None:
        """Count a chunk, and check that all will fit if the rest is as this far.

        Raises:
            UsageError: it will not.
        """
        if self._free_bytes is None:
            return
        self._written += len(payload)
        if self._has_outcomes:
            self._outcomes += (
                content.records * self._outcome_bytes
                if self._outcome_bytes
                else max(len(payload), content.text_bytes // 4 if content.is_split else 0)
            )
        if self._written + self._outcomes >= _MIN_SAMPLE_BYTES:
            self._check()

    def _check(self) -> None:
        share = self._progress.share  # 1 where nobody knows how much there is: what was read so far is counted
        records, outcomes = (int(_REDIS_OVERHEAD * size / (share or 1.0)) for size in (self._written, self._outcomes))
        if self._free_bytes is None or records + outcomes <= self._free_bytes:
            return
        raise UsageError(
            f"The job would take about {_size(records + outcomes)} of Redis's memory, {_size(records)} for its records "
            f"and {_size(outcomes)} for their outcomes, and Redis has room for {_size(self._free_bytes)} (maxmemory). "
            "Keep the data elsewhere with --store, raise maxmemory, or split the input into several jobs. Nothing was "
            "submitted."
        )


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
