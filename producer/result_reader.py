"""Result reader: the rows of one job, chunk by chunk, with a check that none is missing."""

from collections.abc import Iterator
from functools import partial

from common.errors import ModelError, PayloadError, ResultsLost, StorageError
from common.jobs import Job
from common.records import Record
from common.results import LOST, ResultRow
from producer.queue_connection import QueueConnection

#: Causes that mean "this input is not there, or not for this user"; other errors of a storage may pass.
_NOT_FOUND = (FileNotFoundError, NotADirectoryError, PermissionError)


class ResultReader:
    """Reads the rows of a job and raises at the end if some are missing; waits for Redis while it is unavailable."""

    def __init__(self, connection: QueueConnection, job: Job, *, arrays: bool = False) -> None:
        """Open the results of a job.

        Args:
            connection: The job's queue.
            job: Its current state.
            arrays: Return vectors as numpy arrays.
        """
        self._job = job
        self._connection = connection
        self._arrays = arrays
        self._payloads = connection.store.payloads(job.spec)
        self._rows = self._done = self._lost_inputs = 0
        self._warned = False

    def all(self) -> Iterator[list[ResultRow]]:
        """Yield the rows of each chunk.

        Raises:
            ResultsLost: At the end, if some are missing.
        """
        for chunk in range(self._job.chunks or 0):
            yield self.chunk(chunk)
        self.check(self._job)

    def chunk(self, number: int) -> list[ResultRow]:
        """Return the rows of a chunk; without their inputs if those cannot be read any more."""
        from common.payloads.chunk_rows import chunk_rows

        outcomes = self._connection.retry_while_unavailable(partial(self._payloads.outcomes, number))
        rows = chunk_rows(self._records(number), outcomes, arrays=self._arrays)
        self._rows += len(rows)
        self._done += sum(row.outcome is not None and row.outcome is not LOST for row in rows)
        return rows

    def _records(self, chunk: int) -> list[Record] | None:
        try:
            records = self._connection.retry_while_unavailable(partial(self._payloads.records_with_own, chunk))
        except (PayloadError, ModelError, StorageError) as error:
            if isinstance(error, StorageError) and not isinstance(error.__cause__, _NOT_FOUND):
                raise
            if not self._warned:
                self._connection.notify(f"{error} The results of job {self._job.id} are shown without their inputs.")
            self._warned = True
            return None
        if records is None:
            self._lost_inputs += 1
        return records

    def check_inputs(self) -> None:
        """Check that the inputs of the chunks that were read are there.

        Raises:
            ResultsLost: Some are gone, or a file that is read in place is.
        """
        if self._lost_inputs or self._warned:
            raise ResultsLost(self._describe_missing(self._job, 0))

    def check(self, job: Job) -> None:
        """Compare what was read with what the job counted.

        Args:
            job: Its state when reading began, or a later one if every chunk was read after that.

        Raises:
            ResultsLost: The job has more records or outcomes than were read.
        """
        missing = max((job.records or 0) - self._rows, job.counts.done - self._done)
        if missing <= 0 and not self._lost_inputs:
            return
        if not self._connection.retry_while_unavailable(partial(self._connection.store.exists, job.id)):
            raise ResultsLost(
                f"job {job.id} was deleted or expired while its results were read: {self._done:,} of "
                f"{job.counts.done:,} were read."
            )
        what = self._describe_missing(job, missing)
        raise ResultsLost(f"{what} `producer results {job.id} --json` prints what is left.")

    def _describe_missing(self, job: Job, missing: int) -> str:
        if missing <= 0:
            return f"inputs of job {job.id} are no longer in {self._payloads.input_location}; the outputs are complete."
        if self._done >= job.counts.done:
            return (
                f"{missing:,} of {job.records:,} records of job {job.id} were not run, and their inputs cannot be read "
                "any more."
            )
        return (
            f"the outcomes of {missing:,} of {job.records:,} records of job {job.id} are no longer in "
            f"{self._payloads.location}; `producer retry {job.id}` runs them again."
        )
