"""A connection to a queue, and what a producer does with jobs by their ids: look, wait, read outcomes, retry, cancel.

`producer.client` puts on it what people use. Nothing here prints.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import count
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.errors import (
    ModelError,
    ResultsLost,
    StorageError,
    StoreUnavailable,
    UnknownJob,
    UsageError,
    WaitTimedOut,
)
from common.jobs import JOB_ID, Job, JobSpec
from common.queue.heartbeats import Heartbeat, live_workers, serving, target_tickets
from common.queue.idempotency import IdempotencyKeys
from common.queue.jobs import JobStore
from common.queue.ledger import MAX_TICKETS, MIN_TICKETS, Ledger
from common.redis.client import connect, is_transient, redis_errors
from common.redis.durability import durability_warnings
from common.redis.keys import JobKeys
from common.redis.schema import check_schema
from common.results import LOST, ResultRow
from common.settings import Settings
from common.text import one_line
from producer.result_reader import ResultReader

T = TypeVar("T")

#: Seconds between two looks at a job that is waited for; and at most, for a look takes its time from a worker on the
#: same machine: the longer the job, the less a late one matters.
POLL, _MAX_POLL = 0.2, 1.0


#: What stands for the job that was submitted last; and what may begin an id.
LAST = "@last"
_PREFIX = re.compile(r"[0-9a-f]{1,11}\Z")


class QueueConnection:
    """One connection to a queue.

    Every method raises `StoreUnavailable` when Redis is away, and `UnknownJob` for an id that is not there.
    """

    #: Whether the queue is embedded, so that its worker lives only as long as somebody waits for it.
    embedded = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._url = settings.broker_url or ""
        redis_client = connect(self._url)
        self.store = JobStore(redis_client, settings.result_ttl, self._may_open)
        self.ledger = Ledger(redis_client, settings.lease)
        self.claims = IdempotencyKeys(redis_client, settings.result_ttl)

    def _may_open(self, address: str) -> bool:
        """Whether this process opens an address that a job names: with an embedded queue, all jobs are its user's."""
        return self.embedded or self.settings.may_open(address)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of Redis into `StoreUnavailable`."""
        return redis_errors(self._url)

    def check(self) -> None:
        """Check that Redis answers now, with jobs that this release can read: a command that only begins tries once.

        Raises:
            StoreUnavailable: it does not answer.
            UsageError: its jobs are of another release.
        """
        probe = connect(self._url)
        probe.set_retry(Retry(NoBackoff(), 0))
        with self.errors():
            check_schema(probe, self._url)

    def start_worker(self) -> None:
        """Have a worker run as long as this connection is open: a queue that is configured has its own."""

    def ensure_embedded(self, notify: Callable[[str], None]) -> None:
        """See that an embedded queue is there for who waits for it; `say` gets a sentence if it had to be started."""

    def full_id(self, name: str) -> str:
        """Return the id of the job that `name` stands for.

        Args:
            name: an id, the beginning of one that no other job has, or `@last`: the job that was submitted last.

        Raises:
            UnknownJob: there is none.
            UsageError: several begin so.
        """
        if JOB_ID.match(name):
            return name
        with self.errors():
            if name == LAST:
                found = list(filter(None, [self.store.newest()]))
            else:
                found = self.store.ids_with_prefix(name) if _PREFIX.match(name) else []
        if len(found) > 1:
            raise UsageError(
                f"{name!r} begins the ids of {len(found):,} jobs: {', '.join(found[:5])}. Write more of it."
            )
        if not found:
            raise UnknownJob(name)
        return found[0]

    def look(self, job_id: str) -> Job:
        """Return the job as it stands now."""
        with self.errors():
            return self.store.job(job_id)

    def unfinished(self) -> list[Job]:
        """Return the jobs that are not finished."""
        found = []
        with self.errors():
            for job_id in self.store.active():
                with contextlib.suppress(UnknownJob):
                    found.append(self.store.job(job_id))
        return found

    def workers(self) -> list[Heartbeat]:
        """Return the live workers."""
        with self.errors():
            return live_workers(self.store.client)

    def serves(self, queue: str) -> bool:
        """Whether a live worker takes tickets from `queue`."""
        return bool(serving(self.workers(), queue))

    def free_memory(self) -> int | None:
        """Return how many bytes Redis may still take; None where it has no `maxmemory`, or this user may not know."""
        try:
            with self.errors():
                found = self.store.client.info("memory")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                return None
            raise
        most = int(found.get("maxmemory", 0))
        return max(0, most - int(found.get("used_memory", 0))) if most else None

    def durability_warnings(self) -> list[str]:
        """Return why a configured Redis may lose jobs, a sentence each; the embedded one has the right settings."""
        if self.embedded:
            return []
        with self.errors():
            return durability_warnings(self.store.client, self._url)

    def send_tickets(self, spec: JobSpec) -> None:
        """Send the tickets that an accepted job calls for.

        A failure is no loss: the job is accepted, and workers send what is missing.
        """
        from kombu.exceptions import OperationalError  # celery takes a while to import, and most commands send nothing

        from common.broker.app import send_tickets

        with contextlib.suppress(OperationalError, redis.RedisError):
            most = target_tickets(live_workers(self.store.client), spec.queue, MIN_TICKETS, MAX_TICKETS)
            send_tickets(self._app, spec, self.ledger.issue_tickets(spec.id, most))

    @cached_property
    def _app(self) -> Any:
        from common.broker.app import make_app

        return make_app(self.settings)

    def close(self) -> None:
        """Let go of Redis; the connection opens again when it is used."""
        if "_app" in self.__dict__:
            self._app.close()
        self.store.client.close()

    def refusals(self, job_id: str) -> dict[str, str]:
        """Return which workers pass the job over for now, and why."""
        with self.errors():
            raw = self.store.client.hgetall(JobKeys.of(job_id).refusals)
        return {
            one_line(worker.decode(errors="replace"), 200): one_line(reason.decode(errors="replace"))
            for worker, reason in raw.items()
        }

    def retry(self, job_id: str) -> int:
        """Run again what failed, never ended or is lost; return how many chunks that opens.

        Raises:
            UsageError: the job is not finished, or was never accepted.
        """
        with self.errors():
            job = self.store.job(job_id)
            opened = self.ledger.retry(job_id, partial(self.lost_chunks, job) if job.status.finished else tuple)
        if opened:
            self.send_tickets(self.look(job_id).spec)
        return opened

    def lost_chunks(self, job: Job) -> list[int]:
        """Return the chunks of a job whose outcomes are gone, as far as that is seen from here."""
        try:
            with self.errors():
                commits = self.ledger.committed(job.id)
                return self.store.payloads(job.spec).lost(commits) if commits else []
        except (ModelError, StorageError):  # workers find out, who reach the files
            return []

    def cancel(self, job_id: str) -> str:
        """Stop the job, keep what is done; return its status."""
        with self.errors():
            return self.ledger.cancel(job_id)

    def delete(self, job_id: str, *, force: bool = False) -> None:
        """Forget the job and all that belongs to it, but for a model that it trained.

        Raises:
            UsageError: it is not finished, and `force` does not ask to stop it.
        """
        with self.errors():
            status = self.store.delete(job_id, unfinished=force)
        if status == "unknown":
            raise UnknownJob(job_id)
        if status != "deleted":
            raise UsageError(f"Job {job_id} is {status}: cancel it first, or stop and forget it at once with --force.")

    def wait(
        self,
        job_id: str,
        on_change: Callable[[Job], None],
        notify: Callable[[str], None],
        timeout: float | None = None,
    ) -> Job:
        """Return the job once it is finished; go on waiting while Redis is away.

        Args:
            job_id: the job to wait for.
            on_change: gets the job at every look, and may itself look further.
            notify: gets a sentence once when Redis goes away.
            timeout: seconds to wait at most; None: as long as it takes.

        Raises:
            WaitTimedOut: the job is not finished within `timeout`.
        """
        begun = time.monotonic()
        end = math.inf if timeout is None else begun + timeout

        def look() -> Job:
            on_change(job)
            waited = time.monotonic() - begun
            time.sleep(max(POLL, min(_MAX_POLL, waited / 400, end - begun - waited)))
            return self.look(job_id)

        job = self.retry_while_unavailable(lambda: self.look(job_id), notify, end)
        while not job.status.finished:
            if time.monotonic() > end:
                raise WaitTimedOut(f"Job {job_id} is still {job.status} after {timeout:g} s.")
            job = self.retry_while_unavailable(look, notify, end)
        on_change(job)
        return job

    def retry_while_unavailable(self, step: Callable[[], T], notify: Callable[[str], None], end: float = math.inf) -> T:
        """Return what `step` gives, which is tried again while Redis is away; that is told once.

        Args:
            step: what to do.
            notify: gets the sentence.
            end: when to try no more, by `time.monotonic`.

        Raises:
            StoreUnavailable: waiting would not mend what Redis has, or `end` is over.
        """
        troubled = False
        while True:
            self.ensure_embedded(notify)
            try:
                with self.errors():
                    return step()
            except StoreUnavailable as error:
                transient = isinstance(error.__cause__, redis.RedisError) and is_transient(error.__cause__)
                if not transient or time.monotonic() > end:
                    raise
                if not troubled:
                    notify(f"{error} Waiting for it.")
                troubled = True
                time.sleep(POLL)

    def rows(self, job: Job, notify: Callable[[str], None], *, arrays: bool = False) -> Iterator[ResultRow]:
        """Yield every record of the job with its outcome, in input order, one chunk in memory at a time.

        Goes on while Redis is away, as `wait` does: `notify` gets a sentence. With `arrays`, vectors are numpy's.

        Raises:
            ResultsLost: at the end, when some are missing.
        """
        for rows in self.chunks(job, notify, arrays=arrays):
            yield from rows

    def stream_rows(self, job_id: str, notify: Callable[[str], None]) -> Iterator[ResultRow]:
        """Yield every record with its outcome, in input order, each chunk once it is done; end with the job.

        Of a job that ends early, the records of chunks that were not run have no outcome.

        Raises:
            ResultsLost: at the end, when some are missing.
        """
        reader = self._reader(self.retry_while_unavailable(lambda: self.look(job_id), notify), notify)
        for chunk in count():
            job = self.retry_while_unavailable(lambda: self.look(job_id), notify)
            while not (job.status.finished or self.retry_while_unavailable(partial(self._is_done, job, chunk), notify)):
                time.sleep(POLL)
                job = self.retry_while_unavailable(lambda: self.look(job_id), notify)
            if chunk >= (job.chunks or 0):
                reader.check(job)
                return
            yield from reader.chunk(chunk)

    def failed_rows(self, job: Job, notify: Callable[[str], None]) -> Iterator[ResultRow]:
        """Yield the records that failed, in input order; else as `rows`. Only chunks with failures are read."""
        reader, found = self._reader(job, notify), 0
        for chunk in sorted(self.retry_while_unavailable(partial(self.ledger.failures_by_chunk, job.id), notify)):
            rows = [row for row in reader.chunk(chunk) if row.outcome is not None and row.error is not None]
            found += len([1 for row in rows if row.outcome is not LOST])
            yield from rows
        if found < job.counts.failed:
            raise ResultsLost(
                f"{job.counts.failed - found:,} of {job.counts.failed:,} failures of job {job.id} are gone."
            )

    def _is_done(self, job: Job, chunk: int) -> bool:
        with self.errors():
            return self.ledger.is_committed(job.id, chunk)

    def chunks(self, job: Job, notify: Callable[[str], None], *, arrays: bool = False) -> Iterator[list[ResultRow]]:
        """Yield the records of each chunk with their outcomes; else as `rows`."""
        yield from self._reader(job, notify, arrays=arrays).all()

    def _reader(self, job: Job, notify: Callable[[str], None], *, arrays: bool = False) -> ResultReader:
        def retry_while_unavailable(step: Callable[[], T]) -> T:
            return self.retry_while_unavailable(step, notify)

        return ResultReader(self.store, job, retry_while_unavailable, notify, arrays=arrays)

    def output_type(self, job: Job, notify: Callable[[str], None]) -> Any:
        """Return the Arrow type of the job's outputs; None where they are JSON, or none is there yet.

        Goes on while Redis is away, as `wait` does: `notify` gets a sentence.
        """
        from common.payloads.codec import output_type

        payloads = self.store.payloads(job.spec)
        for chunk in range(job.chunks or 0):
            for outcomes in self.retry_while_unavailable(partial(payloads.outcomes, chunk), notify):
                if outcomes is not None:
                    return output_type(outcomes)
        return None
