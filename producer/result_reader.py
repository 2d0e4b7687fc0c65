"""Reading the results of one job, and noticing what is missing: "not there" is never taken for "empty"."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar

from common.errors import ModelError, PayloadError, ResultsLost, StorageError
from common.jobs import Job
from common.queue.jobs import JobStore
from common.records import Record
from common.results import LOST, ResultRow

T = TypeVar("T")

#: What says that an input which is read in place is not there, or not for this user; anything else may pass.
_NOT_FOUND = (FileNotFoundError, NotADirectoryError, PermissionError)


class RetryWhileUnavailable(Protocol):
    """Returns what a step gives, which is tried again while Redis is away."""

    def __call__(self, step: Callable[[], T]) -> T:
        """Do the step."""


class ResultReader:
    """Gives the rows of a job chunk by chunk, and says at the end whether they are all there."""

    def __init__(
        self,
        store: JobStore,
        job: Job,
        retry_while_unavailable: RetryWhileUnavailable,
        notify: Callable[[str], None],
        *,
        arrays: bool = False,
    ) -> None:
        """Open the results of a job.

        Args:
            store: which has the job.
            job: as it stands now.
            patiently: takes every step that asks Redis.
            notify: gets a sentence when inputs cannot be read any more.
            arrays: give vectors as numpy arrays.
        """
        self._job = job
        self._store = store
        self._patiently = retry_while_unavailable
        self._on_trouble = notify
        self._arrays = arrays
        self._payloads = store.payloads(job.spec)
        self._rows = self._done = self._lost_inputs = 0
        self._warned = False

    def all(self) -> Iterator[list[ResultRow]]:
        """Yield the rows of each chunk.

        Raises:
            ResultsLost: at the end, when some are missing.
        """
        for chunk in range(self._job.chunks or 0):
            yield self.chunk(chunk)
        self.check(self._job)

    def chunk(self, number: int) -> list[ResultRow]:
        """Return the rows of a chunk; without their inputs where those cannot be read any more."""
        from common.payloads.part_files import chunk_rows

        outcomes = self._patiently(partial(self._payloads.outcomes, number))
        rows = chunk_rows(self._records(number), outcomes, arrays=self._arrays)
        self._rows += len(rows)
        self._done += len([1 for row in rows if row.outcome is not None and row.outcome is not LOST])
        return rows

    def _records(self, chunk: int) -> list[Record] | None:
        from common.payloads.codec import decode_records

        try:
            payload = self._patiently(partial(self._payloads.records, chunk))
        except (PayloadError, ModelError, StorageError) as error:
            if isinstance(error, StorageError) and not isinstance(error.__cause__, _NOT_FOUND):
                raise
            self._warn_once(f"{error} The results of job {self._job.id} are given without their inputs.")
            return None
        if payload is None:
            self._lost_inputs += 1
            return None
        return decode_records(payload)

    def _warn_once(self, sentence: str) -> None:
        if not self._warned:
            self._on_trouble(sentence)
        self._warned = True

    def check(self, job: Job) -> None:
        """Compare what was read with what the job says that there is.

        Args:
            job: as it stood when the reading began, or later if every chunk was read after that.

        Raises:
            ResultsLost: that was more.
        """
        records = job.records or 0
        missing = max(records - self._rows, job.counts.done - self._done)
        if missing <= 0 and not self._lost_inputs:
            return
        if not self._patiently(partial(self._store.exists, job.id)):
            raise ResultsLost(
                f"job {job.id} was deleted, or its time to live ran out, while its results were read: "
                f"{self._done:,} of {job.counts.done:,} were read."
            )
        raise ResultsLost(
            f"{self._describe_missing(job, missing)} `producer results {job.id} --json` prints what is there."
        )

    def _describe_missing(self, job: Job, missing: int) -> str:
        if missing <= 0:
            return (
                f"inputs of job {job.id} are no longer in {self._payloads.input_location}; the outputs are all there."
            )
        if self._done >= job.counts.done:
            return (
                f"{missing:,} of {job.records:,} records of job {job.id} were not run, and their inputs cannot be read "
                "any more."
            )
        return (
            f"the outcomes of {missing:,} of {job.records:,} records of job {job.id} are no longer in "
            f"{self._payloads.place}; `producer retry {job.id}` runs them again."
        )
