"""Whether a job fits into Redis: estimated while it is submitted, and refused before Redis is full."""

from common.errors import UsageError
from common.jobs import JobSpec
from producer.submit.chunk_source import ChunkContent, ChunkSource

#: Bytes of payloads after which there is something to estimate from.
_MIN_SAMPLE_BYTES = 512 * 1024
#: Redis takes about so many bytes for each byte of a payload.
_REDIS_OVERHEAD = 1.15
#: Bytes of one record's outcome, of tasks whose outcomes are all alike; others are about as large as their inputs.
_OUTCOME_BYTES = {"embedding": 1600}


class MemoryEstimate:
    """What a job whose payloads lie in Redis will take there, records and outcomes."""

    def __init__(self, spec: JobSpec, supply: ChunkSource, free: int | None, *, begun: bool) -> None:
        """Begin before the first chunk.

        Args:
            spec: the job.
            supply: its records.
            free: bytes that Redis may still take; None: as many as there are.
            begun: whether what was taken so far is in Redis already: the job is gone on with.
        """
        self._supply = supply
        self._free_bytes = free if spec.store is None else None
        self._has_outcomes = spec.output is None
        self._outcome_bytes = _OUTCOME_BYTES.get(spec.task)
        self._begun = supply.share() if begun else 0.0
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
        taken = self._supply.share() - self._begun
        rest = (1 - self._begun) / taken if taken > 0 else 1.0  # where nobody knows the end, what is here is counted
        records, outcomes = (int(_REDIS_OVERHEAD * size * max(1.0, rest)) for size in (self._written, self._outcomes))
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
