"""One job of a queue: its state, waiting for its end, its results, and what can be done with it."""

import importlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.display_text import one_line
from common.errors import JobFailed, ModelError, ResultsLost, StorageError, UnknownJob, UsageError, WaitTimedOut
from common.jobs import Job, JobStatus, Output
from common.redis.keys import JobKeys
from common.results import LOST, ResultRow
from common.tasks import declared_output
from producer.end_signal import EndSignal
from producer.outputs import check_output
from producer.outputs.formats import is_typed
from producer.outputs.hub_target import HubOutput, parse_hub_output
from producer.outputs.targets import OutputFile
from producer.predecessors import (
    find_cancelled,
    find_predecessors,
    find_readers,
    find_waiters,
    find_waiting,
    name_jobs,
)
from producer.queue_connection import POLL_SECONDS, QueueConnection
from producer.result_files import write_file, write_parts
from producer.result_reader import ResultReader

if TYPE_CHECKING:
    from producer.hub.upload import Uploaded

logger = logging.getLogger(__name__)

#: Seconds between two looks at a job at most: they show its progress, and cost a worker on the same machine time.
_MAX_POLL_SECONDS = 1.0


class JobHandle:
    """A job of a queue, as `Client.submit` and `Client.job` return it.

    Every method raises `StoreUnavailable` when Redis cannot be reached (those that wait or read results wait for it
    instead), and `UnknownJob` once the job is deleted.
    """

    def __init__(self, connection: QueueConnection, state: Job) -> None:
        self._connection = connection
        self._state = state

    def __repr__(self) -> str:
        return f"<job {self.id}: {self._state.status}>"

    @property
    def id(self) -> str:
        """The job's id, as the commands take it."""
        return self._state.id

    @property
    def state(self) -> Job:
        """The job as last read from Redis: status, counts, and what was submitted. `refresh` updates it."""
        return self._state

    def refresh(self) -> Job:
        """Return the job's current state."""
        self._state = self._connection.load_job(self.id)
        return self._state

    def status(self) -> JobStatus:
        """Return the job's current status."""
        return self.refresh().status

    def raise_for_status(self) -> None:
        """Raise `JobFailed` if the job, as it was last seen, failed as a whole or was cancelled.

        Failed records do not count; see `state.counts.failed`.
        """
        state = self._state
        if state.status is JobStatus.FAILED:
            code, why = (state.failure.code, state.failure.message) if state.failure else (None, "no reason is known")
            raise JobFailed(self.id, f"failed: {why}" if code is None else f"failed ({code}): {why}", code)
        if state.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
            code, why = (state.failure.code, f": {state.failure.message.rstrip('.')}") if state.failure else (None, "")
            raise JobFailed(self.id, f"was cancelled{why}.", code)

    def wait(self, timeout: float | None = None, *, check: bool = False) -> Job:
        """Wait until the job is completed, failed or cancelled, and return its final state.

        With an embedded queue, Ctrl-C cancels the job, as it does on the command line; otherwise the job continues.

        Args:
            timeout: Seconds to wait at most; None for no limit.
            check: Raise `JobFailed` if the job did not complete, like `raise_for_status`.

        Raises:
            WaitTimedOut: The job did not finish in time.
            JobFailed: The job did not complete, and `check` is set.
        """
        if not self.refresh().status.finished:
            self._connection.start_worker()
        try:
            self.poll(lambda _: None, timeout)
        except KeyboardInterrupt:
            if self._connection.embedded:
                self.cancel()
            raise
        if check:
            self.raise_for_status()
        return self._state

    def poll(self, on_change: Callable[[Job], None], timeout: float | None = None) -> Job:
        """Pass the job's state to `on_change` until the job is finished; wait for Redis when it cannot be reached.

        Args:
            on_change: Called with every state that is read, and with the final one.
            timeout: Seconds to wait at most; None for no limit.

        Raises:
            WaitTimedOut: The job did not finish in time.
        """
        start = time.monotonic()
        end = math.inf if timeout is None else start + timeout

        def next_state() -> Job:
            on_change(self._state)
            waited = time.monotonic() - start
            signal.wait(max(POLL_SECONDS, min(_MAX_POLL_SECONDS, waited / 400, end - start - waited)))
            return self.refresh()

        self._connection.retry_while_unavailable(self.refresh, end)
        with EndSignal(self._connection.store.client, self.id) as signal:
            while not self._state.status.finished:
                if time.monotonic() > end:
                    raise WaitTimedOut(f"Job {self.id} is still {self._state.status} after {timeout:g} s.")
                self._connection.retry_while_unavailable(next_state, end)
        on_change(self._state)
        return self._state

    def results(self, *, check: bool = True) -> Iterator[ResultRow]:
        """Yield every record with its outcome, in input order, one chunk in memory at a time.

        A failed record has an `error` and no `output`. A record that was not run (yet) has the error code `not_run`.

        Args:
            check: Raise if the job failed as a whole or was cancelled, instead of yielding what was done.

        Raises:
            JobFailed: The job did not complete, and `check` is set.
            ResultsLost: At the end, if outcomes that the job had are missing.
        """
        self.refresh()
        if check:
            self.raise_for_status()
        return self.rows()

    def failures(self) -> Iterator[ResultRow]:
        """Yield the failed records with their `error`, in input order; records that were not run are left out.

        Raises:
            ResultsLost: At the end, if failures that the job had are missing.
        """
        self.refresh()
        return self.failed_rows()

    def failed_rows(self) -> Iterator[ResultRow]:
        """Yield the failed records of the last seen state; otherwise like `failures`."""
        job = self._state
        reader, found = ResultReader(self._connection, job), 0
        for chunk in sorted(self._connection.retry_while_unavailable(self._failures_by_chunk)):
            rows = [row for row in reader.chunk(chunk) if row.outcome is not None and row.error is not None]
            found += sum(row.outcome is not LOST for row in rows)
            yield from rows
        if found < job.counts.failed:
            raise ResultsLost(
                f"{job.counts.failed - found:,} of {job.counts.failed:,} failures of job {job.id} are missing."
            )

    def _failures_by_chunk(self) -> dict[int, int]:
        return self._connection.ledger.failures_by_chunk(self.id)

    def rows(self, *, arrays: bool = False) -> Iterator[ResultRow]:
        """Yield every record of the last seen state with its outcome; vectors as numpy arrays if `arrays` is set.

        Raises:
            ResultsLost: At the end, if outcomes that the job had are missing.
        """
        for rows in self.chunks(arrays=arrays):
            yield from rows

    def chunks(self, *, arrays: bool = False) -> Iterator[list[ResultRow]]:
        """Yield the rows of each chunk; otherwise like `rows`."""
        yield from ResultReader(self._connection, self._state, arrays=arrays).all()

    def stream(self) -> Iterator[ResultRow]:
        """Yield the rows of each chunk, in input order, as soon as the chunk is done, until the job ends.

        If the job ends early, the records of chunks that were not run have no outcome.

        Raises:
            ResultsLost: At the end, if outcomes that the job had are missing.
        """
        reader = ResultReader(self._connection, self._connection.retry_while_unavailable(self.refresh))
        for rows in self._stream(reader, 0, lambda _: None):
            yield from rows
        reader.check(self._state)

    def stream_chunks(self, first: int, on_wait: Callable[[Job], None]) -> Iterator[list[ResultRow]]:
        """Yield the rows of each chunk from `first`, vectors as numpy arrays, as `stream` does.

        Args:
            first: The first chunk, from 0.
            on_wait: Called with the job's state while a chunk is not done.

        Raises:
            ResultsLost: The inputs of a chunk are gone. Lost outcomes are yielded, as `LOST`.
        """
        state = self._connection.retry_while_unavailable(self.refresh)
        reader = ResultReader(self._connection, state, arrays=True)
        for rows in self._stream(reader, first, on_wait):
            reader.check_inputs()
            yield rows

    def _stream(self, reader: ResultReader, first: int, on_wait: Callable[[Job], None]) -> Iterator[list[ResultRow]]:
        retry = self._connection.retry_while_unavailable
        for chunk in count(first):
            while not (retry(self.refresh).status.finished or retry(partial(self._is_committed, chunk))):
                on_wait(self._state)
                time.sleep(POLL_SECONDS)
            on_wait(self._state)
            if chunk >= (self._state.chunks or 0):
                return
            yield reader.chunk(chunk)

    def _is_committed(self, chunk: int) -> bool:
        return self._connection.ledger.is_committed(self.id, chunk)

    def output_type(self) -> Any:
        """Return the Arrow type of the outputs; None if they have none, and for now if only the runner knows."""
        from common.payloads.arrays import holds_vectors
        from common.payloads.codec import output_type

        form = declared_output(self._state.spec)
        payloads = self._connection.store.payloads(self._state.spec)
        for chunk in range(self._state.chunks or 0):
            for outcomes in self._connection.retry_while_unavailable(partial(payloads.outcomes, chunk)):
                kind = None if outcomes is None else output_type(outcomes)
                # Failures alone may not know the length of the other chunks' vectors.
                if outcomes is not None and not (form and form.holds_vectors and not holds_vectors(kind)):
                    return kind
        return form.arrow_type() if form else None

    def to_arrow(self, *, check: bool = True) -> Any:
        """Return all results as a `pyarrow.Table`, in input order.

        Columns: those of the records that the job keeps, in their own types; `id` if they have none; then output,
        error_code, error_message and truncated. `output` has the type that the task declares, such as a fixed-size list
        of float32 for vectors. With a runner that declares none, strings stay strings and the rest is JSON text.

        Args:
            check: As for `results`.

        Raises:
            JobFailed: As for `results`.
        """
        from common.payloads.result_tables import ResultTable
        from producer.outputs.parquet import to_table

        self.refresh()
        if check:
            self.raise_for_status()
        return to_table(partial(self.rows, arrays=True), ResultTable.of(self._state.spec, self.output_type()))

    def to_pandas(self, *, check: bool = True) -> Any:
        """Return all results as a `pandas.DataFrame`; otherwise like `to_arrow`."""
        return self.to_arrow(check=check).to_pandas()

    def to_dataset(self, *, check: bool = True) -> Any:
        """Return all results as a `datasets.Dataset`; otherwise like `to_arrow`."""
        return importlib.import_module("datasets").Dataset(self.to_arrow(check=check))

    def write(self, path: str | Path, *, check: bool = True, csv_safe: bool = False) -> None:
        """Write all results to a `.jsonl`, `.csv`, `.parquet` or `.npy` file, complete or not at all.

        Args:
            path: The file. An existing one is replaced if the job is completed.
            check: As for `results`.
            csv_safe: Put a `'` before CSV cells that a spreadsheet would run as a formula.

        Raises:
            JobFailed: As for `results`.
            UsageError: The file cannot be written, its format does not fit the task, or it exists and the job is not
                completed.
            ResultsLost: Outcomes that the job had are missing; the file is unchanged.
        """
        job, target = self.refresh(), Path(path)
        if check:
            self.raise_for_status()
        check_output(target, declared_output(job.spec))
        self.write_file(OutputFile(target, csv_safe))

    def write_file(self, file: OutputFile, rows: Callable[[], Iterable[ResultRow]] | None = None) -> int:
        """Write rows of the last seen state, all if `rows` is None; return their number. Raises as `write`."""
        output_type = self.output_type() if is_typed(file.path) and not self._state.spec.format else None
        return write_file(self._state, rows or partial(self.rows, arrays=True), file, output_type)

    def write_parts(self, output: Output) -> int:
        """Write a part for each chunk of the last seen state; return the number of records. Raises as `write`."""
        return write_parts(self._state, self.chunks(arrays=True), output, self.output_type())

    def push_to_hub(
        self, repo: str, *, split: str = "train", public: bool = False, notify: Callable[[str], None] = logger.info
    ) -> str:
        """Upload all results to a dataset on the Hub while the job runs; return its URL once all are there.

        They become Parquet files of the split, added by at most one commit a minute, and a card. After an interruption,
        the same call goes on after the last commit.

        Args:
            repo: The dataset, `ORG/NAME`; it is created if it does not exist.
            split: Its split.
            public: Create it as a public one.
            notify: Called with a sentence for each commit.

        Raises:
            UsageError: The dataset cannot be written with this user's token, or holds other results in that split.
            JobFailed: The job failed as a whole or was cancelled; what it had done before is uploaded.
            ResultsLost: Outcomes that the job had are missing; those before them are uploaded.
            HugqueueError: The Hub fails for long.
        """
        from producer.hub.checks import check_hub_output

        target = parse_hub_output(f"hf:{repo}:{split}", public=public)
        check_hub_output(target, self._connection.settings, begun=True)
        uploaded = self.upload(target, lambda _: None, notify)
        self.raise_for_status()
        return uploaded.url

    def upload(self, target: HubOutput, on_wait: Callable[[Job], None], notify: Callable[[str], None]) -> "Uploaded":
        """Upload as `push_to_hub`; `on_wait` is called with the job's state while a chunk is not done."""
        from producer.hub.upload import upload_results

        if self.refresh().spec.format:
            raise UsageError(f"{target}: responses to a batch file are JSON lines; write them to a .jsonl file.")
        if not self._state.status.finished:
            self._connection.start_worker()
        return upload_results(self, target, self._connection.settings, on_wait, notify)

    def refusals(self) -> dict[str, str]:
        """Return the reason of each worker that skips this job at present."""
        with self._connection.errors():
            raw = self._connection.store.client.hgetall(JobKeys.of(self.id).refusals)
        return {
            one_line(worker.decode(errors="replace"), 200): one_line(reason.decode(errors="replace"))
            for worker, reason in raw.items()
        }

    def predecessors(self) -> dict[str, Job | None]:
        """Return the jobs that this one waits for, by id, None for one that is gone; empty unless it is blocked."""
        return find_predecessors(self._connection, self._state)

    def waiting(self) -> list[Job]:
        """Return the blocked jobs that wait for this one or, in turn, for one of these, and end if it fails."""
        return find_waiting(self._connection, self.id)

    def readers(self) -> list[Job]:
        """Return the finished jobs whose input the results of this one are."""
        return find_readers(self._connection, self.id)

    def cancelled_waiters(self) -> list[Job]:
        """Return the jobs that were cancelled because this one, or one that waited for it, failed or was cancelled."""
        return find_cancelled(self._connection, self.id)

    def cancel(self) -> JobStatus:
        """Stop the job and keep what is done; return its status: `cancelling` while workers still hold chunks."""
        with self._connection.errors():
            return JobStatus(self._connection.ledger.cancel(self.id))

    def retry(self) -> int:
        """Run again what failed, never ended or was lost; return the number of chunks that are run.

        Raises:
            UsageError: The job is not finished, or was never accepted.
        """
        job = self.refresh()
        with self._connection.errors():
            opened = self._connection.ledger.retry(self.id, self.lost_chunks if job.status.finished else tuple)
        if opened:
            self._connection.send_tickets(self.refresh().spec)
        if not self.refresh().status.finished:
            self._connection.start_worker()
        return opened

    def lost_chunks(self) -> list[int]:
        """Return the chunks whose outcomes are missing, as far as this machine can see."""
        try:
            with self._connection.errors():
                commits = self._connection.ledger.committed(self.id)
                return self._connection.store.payloads(self._state.spec).lost(commits) if commits else []
        except (ModelError, StorageError):  # the workers, which reach the files, find out
            return []

    def delete(self, *, force: bool = False) -> None:
        """Delete the job with its records and results; a model that it trained stays.

        Args:
            force: Stop the job first if it is not finished. Jobs that wait for it are cancelled, and jobs that read its
                results fail with `results_lost`.

        Raises:
            UsageError: The job is not finished, or others wait for it or read its results; and `force` is not set.
        """
        with self._connection.errors():
            status = self._connection.store.delete(self.id, "any" if force else "finished")
        if status == "unknown":
            raise UnknownJob(self.id)
        if status == "awaited":
            found = [job for job in find_waiters(self._connection, self.id) if not job.status.finished]
            raise UsageError(
                f"Job {self.id} is needed by {name_jobs(found)}, which waits for it or reads its results: wait until "
                "that has ended, cancel it first, or delete this one all the same with --force."
            )
        if status != "deleted":
            raise UsageError(f"Job {self.id} is {status}: cancel it first, or stop and delete it with --force.")
