"""A connection to a queue: its stores in Redis, its workers, and the tickets that are sent to them."""

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.broker.tickets import send_tickets
from common.errors import StorageError, StoreUnavailable, UnknownJob, UsageError
from common.jobs import JOB_ID, Job, JobSpec
from common.queue.heartbeats import Heartbeat, live_workers, serving, target_tickets
from common.queue.jobs import JobStore
from common.queue.ledger import MAX_TICKETS, MIN_TICKETS, Ledger
from common.redis.client import connect, redis_errors, retry_while_unavailable
from common.redis.durability import durability_warnings
from common.redis.schema import check_schema
from common.settings import Settings

if TYPE_CHECKING:
    from producer.embedded.attach import EmbeddedSession

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds between checks of Redis while waiting.
POLL_SECONDS = 0.2
#: The name of the job that was submitted last.
LAST = "@last"
_ID_PREFIX = re.compile(r"[0-9a-f]{1,11}\Z")


class QueueConnection:
    """One connection to a queue.

    Every method raises `StoreUnavailable` when Redis cannot be reached, and `UnknownJob` for an id without a job.
    """

    def __init__(
        self,
        settings: Settings,
        embedded: "EmbeddedSession | None" = None,
        notify: Callable[[str], None] = logger.warning,
    ) -> None:
        """Connect when first used.

        Args:
            settings: With the URL of Redis.
            embedded: The embedded queue, if it is one.
            notify: Called with a sentence when Redis goes away while something is waited for.
        """
        self.settings = settings
        self.notify = notify
        self._embedded = embedded
        self._url = settings.broker_url or ""
        redis_client = connect(self._url)
        self.store = JobStore(redis_client, settings.result_ttl, self._may_open)
        self.ledger = Ledger(redis_client, settings.lease_seconds)

    @property
    def embedded(self) -> bool:
        """Whether the queue is embedded: its worker then lives only as long as a client needs it."""
        return self._embedded is not None

    def _may_open(self, location: str) -> bool:
        """Whether this process opens a location that a job names: all jobs of an embedded queue are its user's."""
        return self.embedded or self.settings.may_open(location)

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of Redis into `StoreUnavailable`."""
        return redis_errors(self._url)

    def check(self) -> None:
        """Check once, without retries, that Redis answers and that this release can read its jobs.

        Raises:
            StoreUnavailable: Redis does not answer.
            UsageError: Its jobs are of another release.
        """
        probe = connect(self._url)
        probe.set_retry(Retry(NoBackoff(), 0))
        with self.errors():
            check_schema(probe, self._url)

    def start_worker(self) -> None:
        """Start the embedded queue's worker if there is none; a configured queue has its own."""
        if self._embedded is not None:
            self._embedded.start_worker()

    def full_id(self, name: str) -> str:
        """Return the id of the job that `name` refers to.

        Args:
            name: An id, a prefix that only one id has, or `@last` for the job that was submitted last.

        Raises:
            UnknownJob: No job has it.
            UsageError: Several ids have the prefix.
        """
        if JOB_ID.match(name):
            return name
        with self.errors():
            if name == LAST:
                found = list(filter(None, [self.store.newest()]))
            else:
                found = self.store.ids_with_prefix(name) if _ID_PREFIX.match(name) else []
        if len(found) > 1:
            raise UsageError(
                f"{name!r} is a prefix of {len(found):,} ids: {', '.join(found[:5])}. Use a longer prefix."
            )
        if not found:
            raise UnknownJob(name)
        return found[0]

    def load_job(self, job_id: str) -> Job:
        """Return the current state of a job."""
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
        """Return how many bytes Redis can still take; None without a `maxmemory`, or without the right to read it."""
        try:
            with self.errors():
                memory = self.store.client.info("memory")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                return None
            raise
        limit = int(memory.get("maxmemory", 0))
        return max(0, limit - int(memory.get("used_memory", 0))) if limit else None

    def durability_warnings(self) -> list[str]:
        """Return why a configured Redis may lose jobs, a sentence each; the embedded one is configured well."""
        if self.embedded:
            return []
        with self.errors():
            return durability_warnings(self.store.client, self._url)

    def send_tickets(self, spec: JobSpec) -> None:
        """Send the tickets that an accepted job needs. A failure is harmless: workers send what is missing."""
        with contextlib.suppress(redis.RedisError):
            number = target_tickets(live_workers(self.store.client), spec.queue, MIN_TICKETS, MAX_TICKETS)
            send_tickets(self.store.client, spec, self.ledger.issue_tickets(spec.id, number))

    def close(self) -> None:
        """Close the connections to Redis; they open again when used."""
        self.store.client.close()

    def retry_while_unavailable(self, step: Callable[[], T], end: float = math.inf) -> T:
        """Return what `step` returns, repeating it while Redis cannot be reached; `notify` is called once.

        Args:
            step: What to do.
            end: When to stop trying, by `time.monotonic`.

        Raises:
            StoreUnavailable: The fault will not pass by itself, or `end` is over.
        """
        notified = False

        def attempt() -> T:
            if self._embedded is not None:
                self._embedded.ensure_running()
            with self.errors():
                return step()

        def wait(error: Exception) -> None:
            nonlocal notified
            if isinstance(error, StorageError) or time.monotonic() > end:
                raise error
            if not notified:
                self.notify(f"{error} Waiting for it.")
            notified = True
            time.sleep(POLL_SECONDS)

        return retry_while_unavailable(attempt, wait)
