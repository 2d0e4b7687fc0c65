"""Memory estimate: whether a job fits into Redis, checked while it is submitted, before Redis is full."""

from common.errors import UsageError
from common.inputs.sources import ReadProgress
from common.jobs import JobSpec
from producer.submit.chunk_source import ChunkContent

#: Bytes of payloads that the first estimate needs.
_MIN_SAMPLE_BYTES = 512 * 1024
#: Bytes that Redis takes for each byte of a payload.
_REDIS_OVERHEAD = 1.15
#: Bytes of the outcome of a record with one vector, by its precision; others are about as large as their inputs.
_VECTOR_BYTES = {"float32": 1600, "float16": 800, "int8": 450, "uint8": 450, "binary": 100, "ubinary": 100}


class MemoryEstimate:
    """Estimate of the memory that a job's records and outcomes will take in Redis."""

    def __init__(self, spec: JobSpec, progress: ReadProgress, free: int | None) -> None:
        """Begin before the first chunk.

        Args:
            spec: the job.
            progress: how much of the inputs was read.
            free: bytes that Redis may still take; None if there is no limit.
        """
        self._progress = progress
        self._free_bytes = free if spec.store is None else None
        self._has_outcomes = spec.output is None
        has_one_vector = spec.task == "embedding" and "split_tokens" not in spec.params
        self._outcome_bytes = _VECTOR_BYTES[spec.params.get("precision", "float32")] if has_one_vector else None
        self._written = self._outcomes = 0

    def add(self, content: ChunkContent, payload: bytes, own: bytes | None = None) -> None:
        """Count a chunk, and check that the whole job fits if the rest is like the chunks so far.

        Args:
            content: of the chunk.
            payload: its records.
            own: their own columns.

        Raises:
            UsageError: it does not fit.
        """
        if self._free_bytes is None:
            return
        self._written += len(payload) + len(own or b"")
        if self._has_outcomes:
            self._outcomes += (
                content.records * self._outcome_bytes
                if self._outcome_bytes
                else max(len(payload), content.text_bytes // 4 if content.is_split else 0)
            )
        if self._written + self._outcomes >= _MIN_SAMPLE_BYTES:
            self._check()

    def _check(self) -> None:
        share = self._progress.share  # 1 if the total is unknown: then only what was read counts
        records, outcomes = (int(_REDIS_OVERHEAD * size / (share or 1.0)) for size in (self._written, self._outcomes))
        if self._free_bytes is None or records + outcomes <= self._free_bytes:
            return
        raise UsageError(
            f"The job would take about {_size(records + outcomes)} of Redis's memory, {_size(records)} for its records "
            f"and {_size(outcomes)} for their outcomes, and Redis has {_size(self._free_bytes)} left (maxmemory). "
            "Keep the data elsewhere with --store, raise maxmemory, or split the input into several jobs. Nothing was "
            "submitted."
        )


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
