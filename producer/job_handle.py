"""A job in the hands of a program: where it stands, waiting for it, its results, stopping it."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import JobFailed
from common.jobs import Job, JobStatus
from common.results import ResultRow
from common.tasks import find_task
from producer.outputs import check_output
from producer.outputs.targets import OutputFile
from producer.queue_connection import QueueConnection
from producer.save_results import write_rows

logger = logging.getLogger(__name__)


class JobHandle:
    """One job of a queue; `producer.Client` gives it.

    Every method raises `StoreUnavailable` when Redis is away (but for those that wait, which go on waiting for it),
    and `UnknownJob` when the job is there no longer.
    """

    def __init__(self, connection: QueueConnection, state: Job) -> None:
        self._connection = connection
        self._state = state

    def __repr__(self) -> str:
        return f"<job {self.id}: {self._state.status}>"

    @property
    def id(self) -> str:
        """The job's id, as `producer status` takes it."""
        return self._state.id

    @property
    def state(self) -> Job:
        """The job as it was last seen: status, counts, what was submitted. Asks nobody; `refresh` does."""
        return self._state

    def refresh(self) -> Job:
        """Return the job as it stands now."""
        self._state = self._connection.look(self.id)
        return self._state

    def status(self) -> JobStatus:
        """Return the status that the job has now."""
        return self.refresh().status

    def raise_for_status(self) -> None:
        """Raise `JobFailed` if the job, as it was last seen, failed as a whole or was cancelled.

        Records that failed alone are no reason: `state.counts.failed` counts them.
        """
        state = self._state
        if state.status is JobStatus.FAILED:
            code, why = (state.failure.code, state.failure.message) if state.failure else (None, "no reason is known")
            raise JobFailed(self.id, f"failed: {why}" if code is None else f"failed ({code}): {why}", code)
        if state.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
            raise JobFailed(self.id, "was cancelled.")

    def wait(self, timeout: float | None = None, *, check: bool = False) -> Job:
        """Return the job once it is finished, be it completed, failed or cancelled; go on while Redis is away.

        With an embedded queue, Ctrl-C cancels the job, as it does on the command line; else it goes on.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.
            check: whether a job that did not complete raises, as `raise_for_status`.

        Raises:
            WaitTimedOut: the job is not finished by then.
            JobFailed: it did not complete, and `check` is set.
        """
        if not self.refresh().status.finished:
            self._connection.start_worker()
        try:
            self._state = self._connection.wait(self.id, lambda _: None, logger.warning, timeout)
        except KeyboardInterrupt:
            if self._connection.embedded:
                self.cancel()
            raise
        if check:
            self.raise_for_status()
        return self._state

    def results(self, *, check: bool = True) -> Iterator[ResultRow]:
        """Yield every record with its outcome, in input order, one chunk in memory at a time.

        A record that failed has an `error` and no `output`. Of a job that runs, or that ended early, the error of
        records without an outcome has the code `not_run`.

        Args:
            check: whether a job that failed as a whole or was cancelled raises; else what is done of it is given.

        Raises:
            JobFailed: it did, and `check` is set.
            ResultsLost: at the end, when some that the job had are missing.
        """
        self.refresh()
        if check:
            self.raise_for_status()
        return self._connection.rows(self._state, logger.warning)

    def failures(self) -> Iterator[ResultRow]:
        """Yield the records that failed, each with its `error`, in input order; those that were not run are none."""
        return self._connection.failed_rows(self.refresh(), logger.warning)

    def to_arrow(self, *, check: bool = True) -> Any:
        """Return all results as a `pyarrow.Table`, in input order.

        Columns: id, input, output, error_code, error_message, truncated. `output` has the type that the task
        declares, as a list of float32 for vectors; else it is JSON text, and a text is itself.

        Args:
            check: as for `results`.

        Raises:
            JobFailed: as for `results`.
        """
        from producer.outputs.columns import to_table

        return to_table(self.results(check=check), self._connection.output_type(self._state, logger.warning))

    def write(self, path: str | Path, *, check: bool = True, csv_safe: bool = False) -> None:
        """Write all results to a file, whole or not at all: `.jsonl`, `.csv`, `.parquet` or `.npy` by its name.

        Args:
            path: the file; one that is there is replaced, if the job is completed.
            check: as for `results`.
            csv_safe: whether cells of CSV that a spreadsheet would run as a formula get a `'` in front.

        Raises:
            JobFailed: as for `results`.
            UsageError: the file cannot be written, its kind does not go with the task, or it is there already and the
                job is not completed.
            ResultsLost: some that the job had are missing; the file is as it was.
        """
        job, target = self.refresh(), Path(path)
        if check:
            self.raise_for_status()
        check_output(target, find_task(job.spec.task))
        write_rows(self._connection, job, OutputFile(target, csv_safe), logger.warning)

    def refusals(self) -> dict[str, str]:
        """Return which workers pass the job over for now, and why."""
        return self._connection.refusals(self.id)

    def cancel(self) -> JobStatus:
        """Stop the job and keep what is done; return its status, `cancelling` while chunks are in hand."""
        return JobStatus(self._connection.cancel(self.id))

    def retry(self) -> int:
        """Run again what failed, never ended or is lost; return how many chunks that opens.

        Raises:
            UsageError: the job is not finished, or was never accepted.
        """
        opened = self._connection.retry(self.id)
        if not self.refresh().status.finished:
            self._connection.start_worker()
        return opened

    def delete(self, *, force: bool = False) -> None:
        """Forget the job and all that belongs to it, but for a model that it trained.

        Args:
            force: whether to stop it first if it is not finished.

        Raises:
            UsageError: it is not finished, and `force` is not set.
        """
        self._connection.delete(self.id, force=force)
