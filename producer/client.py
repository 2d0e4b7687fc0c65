"""The queue as a producer uses it: submit, look, wait, read outcomes, retry, cancel.

The command line is written on this. Nothing here prints.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.connection import connect, is_passing, redis_errors
from common.errors import StoreUnavailable, UnknownJob
from common.heartbeats import Heartbeat, living, serving, ticket_target
from common.jobs import Job
from common.keys import JobKeys
from common.ledger import MIN_TICKETS, Ledger
from common.rows import Row
from common.settings import Settings
from common.store import Store
from common.values import JobSpec

T = TypeVar("T")

#: Seconds between two looks at a job that is waited for.
POLL = 0.2


class Client:
    """One connection to a queue.

    Every method raises `StoreUnavailable` when Redis is away, and `UnknownJob` for an id that is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._url = settings.broker_url or ""
        redis_client = connect(self._url)
        self.store = Store(redis_client, settings.result_ttl)
        self.ledger = Ledger(redis_client, settings.lease)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of Redis into `StoreUnavailable`."""
        return redis_errors(self._url)

    def check(self) -> None:
        """Raise `StoreUnavailable` unless Redis answers now: a command that only begins tries once."""
        probe = connect(self._url)
        probe.set_retry(Retry(NoBackoff(), 0))
        with self.errors():
            probe.ping()

    def job(self, job_id: str) -> Job:
        """Return the job."""
        with self.errors():
            return self.store.job(job_id)

    def jobs(self) -> list[Job]:
        """Return all jobs, the newest first."""
        with self.errors():
            return self.store.jobs()

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
            return living(self.store.client)

    def serves(self, queue: str) -> bool:
        """Whether a live worker takes tickets from `queue`."""
        return bool(serving(self.workers(), queue))

    def send_tickets(self, spec: JobSpec) -> None:
        """Send the tickets that an accepted job calls for.

        A failure is no loss: the job is accepted, and workers send what is missing.
        """
        from kombu.exceptions import OperationalError  # celery takes a while to import, and most commands send nothing

        from common.queue import make_app, send_tickets

        with contextlib.suppress(OperationalError, redis.RedisError):
            most = ticket_target(living(self.store.client), spec.queue, MIN_TICKETS)
            send_tickets(make_app(self.settings), spec, self.ledger.issue(spec.id, most))

    def refusals(self, job_id: str) -> dict[str, str]:
        """Return which workers pass the job over for now, and why."""
        with self.errors():
            raw = self.store.client.hgetall(JobKeys.of(job_id).refusals)
        return {worker.decode(): reason.decode() for worker, reason in raw.items()}

    def retry(self, job_id: str) -> int:
        """Run again what failed or never ended; return how many chunks that opens.

        Raises:
            UsageError: the job is not finished, or was never accepted.
        """
        with self.errors():
            opened = self.ledger.retry(job_id)
        if opened:
            self.send_tickets(self.job(job_id).spec)
        return opened

    def cancel(self, job_id: str) -> str:
        """Stop the job, keep what is done; return its status."""
        with self.errors():
            return self.ledger.cancel(job_id)

    def wait(
        self,
        job_id: str,
        on_change: Callable[[Job], None],
        on_trouble: Callable[[str], None],
    ) -> Job:
        """Return the job once it is finished; go on waiting while Redis is away.

        Args:
            job_id: the job to wait for.
            on_change: gets the job at every look, and may itself look further.
            on_trouble: gets a sentence once when Redis goes away.
        """

        def look() -> Job:
            on_change(job)
            time.sleep(POLL)
            return self.job(job_id)

        job = self.patiently(lambda: self.job(job_id), on_trouble)
        while not job.status.finished:
            job = self.patiently(look, on_trouble)
        on_change(job)
        return job

    def patiently(self, step: Callable[[], T], on_trouble: Callable[[str], None]) -> T:
        """Return what `step` gives, which is tried again while Redis is away; that is told once."""
        troubled = False
        while True:
            try:
                with self.errors():
                    return step()
            except StoreUnavailable as error:
                if not (isinstance(error.__cause__, redis.RedisError) and is_passing(error.__cause__)):
                    raise
                if not troubled:
                    on_trouble(f"{error} Waiting for it.")
                troubled = True
                time.sleep(POLL)

    def rows(self, job: Job, on_trouble: Callable[[str], None]) -> Iterator[Row]:
        """Yield every record of the job with its outcome, in input order, one chunk in memory at a time.

        Goes on while Redis is away, as `wait` does: `on_trouble` gets a sentence.
        """
        from common.payloads import decode_records, overlay

        for chunk in range(job.chunks or 0):
            payload = self.patiently(partial(self.store.records, job.id, chunk), on_trouble)
            outcomes = overlay(self.patiently(partial(self.store.outcomes, job.id, chunk), on_trouble))
            for position, record in enumerate(decode_records(payload) if payload else ()):
                yield Row(record.id, record.input, outcomes[position][1] if position in outcomes else None)

    def output_type(self, job: Job, on_trouble: Callable[[str], None]) -> Any:
        """Return the Arrow type of the job's outputs; None where they are JSON, or none is there yet.

        Goes on while Redis is away, as `wait` does: `on_trouble` gets a sentence.
        """
        from common.payloads import decode_outcomes, output_type

        for chunk in range(job.chunks or 0):
            payloads = self.patiently(partial(self.store.outcomes, job.id, chunk), on_trouble)
            if payloads:
                return output_type(decode_outcomes(payloads[0]))
        return None
