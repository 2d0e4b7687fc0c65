"""The reaper: finds chunks whose worker is gone, tickets that were lost, and jobs whose producer died.

Every worker has one on a timer; a key in Redis lets one of them work at a time.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from common.broker.queue import send_tickets, waiting_tickets
from common.errors import ModelError, StorageError, UnknownJob, UsageError
from common.redis import keys
from common.redis.connection import is_passing
from common.redis.holding import hold, let_go
from common.settings import Settings
from common.store.heartbeats import Heartbeat, living, ticket_target
from common.store.ledger import MIN_TICKETS, Ledger
from common.store.publishing import publish
from common.store.store import Store
from common.values import Failure, JobSpec, visible

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks for files of jobs that are no more.
FILES_EVERY = 60.0


class Reaper:
    """Looks after all unfinished jobs every `settings.reap` seconds."""

    def __init__(self, name: str, app: Celery, store: Store, ledger: Ledger, settings: Settings) -> None:
        self._name = name
        self._app = app
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._missing: set[str] = set()
        self._broken: set[str] = set()
        self._judge_from = self._files_from = self._others_until = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._reap_for_ever, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin at once: a worker that joins sends the tickets that its own slots call for."""
        self._thread.start()

    def stop(self) -> None:
        """End, and let another worker reap at once."""
        self._stopped.set()
        self._thread.join()
        try:
            let_go(self._store.client, keys.REAPER, self._name)
        except redis.RedisError as error:
            logger.info("the turn to reap runs out by itself: %s", error)

    def _reap_for_ever(self) -> None:
        while True:
            try:
                if self._my_turn():
                    self.reap()
                if time.monotonic() < self._others_until:
                    let_go(self._store.client, keys.REAPER, self._name)
            except (redis.RedisError, OperationalError) as error:
                # Others could not renew their leases either: they get a whole lease to come back.
                self._judge_from = time.monotonic() + self._settings.lease
                logger.info("reaper waits for Redis: %s", error)
            except Exception:
                # What lies in Redis may have been written by anybody; without its reaper the worker serves no one.
                logger.exception("the reaper met what it did not expect")
            if self._stopped.wait(self._settings.reap):
                return

    def _my_turn(self) -> bool:
        if time.monotonic() < self._others_until:
            return False
        return hold(self._store.client, keys.REAPER, self._name, int(self._settings.reap * 2000))

    def _publish(self, spec: JobSpec) -> None:
        """Say that an output is whole whose last worker could not."""
        if spec.output is None or not self._ledger.unpublished(spec.id):
            return
        try:
            parts = self._store.payloads(spec).parts
            if parts is not None and publish(self._store, self._ledger, spec.id, parts):
                logger.info("job %s: its output is whole", spec.id)
        except (ModelError, StorageError) as error:
            logger.warning("the output of job %s cannot be finished here: %s", spec.id, error)
            self._store.note(spec.id, "stage", f"finishing its output: {visible(error.message)}")
            # Another worker may reach what this one does not; whoever reaps goes on reaping otherwise.
            self._others_until = time.monotonic() + 2 * self._settings.reap

    def _remove_files(self) -> None:
        """Remove what jobs left in files whose time to live is over."""
        if time.monotonic() < self._files_from:
            return
        self._files_from = time.monotonic() + FILES_EVERY
        for job_id in self._guarded("what is noted of files", self._store.left_behind) or ():
            if self._guarded(f"the files of job {job_id}", partial(self._store.remove_files, job_id)):
                logger.info("job %s is no more: its files are removed", job_id)

    def reap(self) -> None:
        """Look after every unfinished job once.

        Raises:
            redis.RedisError: Redis is away.
            kombu.exceptions.OperationalError: Redis is away, as kombu says it.
        """
        self._remove_files()
        jobs = self._store.active()
        if not jobs:
            return
        if self._leases_may_be_judged():
            for job_id in jobs:
                self._guarded(_named(job_id), partial(self._open_lost_chunks, job_id))
        self._send_missing_tickets(jobs)

    def _guarded(self, what: str, step: Callable[[], T]) -> T | None:
        """Do a step for one job; a job whose keys somebody has broken does not stand in the way of the others."""
        try:
            return step()
        except Exception as error:  # the boundary: each job is looked after, whatever lies beside it
            if isinstance(error, (redis.RedisError, OperationalError)) and not _is_refusal(error):
                raise
            if what not in self._broken:  # once is enough: it is met again each time
                logger.error("%s cannot be looked after: %s: %s", what, type(error).__name__, error)
            self._broken.add(what)
            return None

    def _leases_may_be_judged(self) -> bool:
        """After a restart of Redis all leases look lost: their holders get a whole lease to renew them."""
        uptime = float(self._store.client.info("server").get("uptime_in_seconds", 0))
        return uptime > self._settings.lease and time.monotonic() > self._judge_from

    def _open_lost_chunks(self, job_id: str) -> None:
        opened = self._ledger.reap(job_id, self._settings.producer_ttl)
        if opened is None:
            logger.warning("job %s given up: its producer died in the middle of submitting", job_id)
        elif opened:
            logger.warning(
                "job %s: chunks %s open again, their workers are gone", job_id, [chunk + 1 for chunk in opened]
            )

    def _send_missing_tickets(self, jobs: list[str]) -> None:
        waiting = waiting_tickets(self._store.client)
        workers = living(self._store.client)
        missing: set[str] = set()
        for job_id in jobs:
            name = _named(job_id)
            missing |= self._guarded(name, partial(self._void_lost_tickets, job_id, waiting)) or set()
            self._guarded(name, partial(self._top_up, job_id, workers))
        self._missing = missing

    def _void_lost_tickets(self, job_id: str, waiting: set[str]) -> set[str]:
        gone = self._ledger.tickets(job_id) - waiting
        # Missing twice in a row: a ticket that is noted but not yet sent, or in a worker's hand, is missing once.
        self._ledger.void(job_id, sorted(gone & self._missing))
        return gone

    def _top_up(self, job_id: str, workers: list[Heartbeat]) -> None:
        try:
            spec = self._store.job(job_id).spec
            self._publish(spec)
        except UnknownJob:
            if self._store.exists(job_id):
                raise ValueError("it is not one that this version can read") from None
            self._store.delete(job_id)
            return
        tickets = self._ledger.issue(job_id, ticket_target(workers, spec.queue, MIN_TICKETS))
        try:
            send_tickets(self._app, spec, tickets)
        except UsageError as error:
            self._ledger.fail(job_id, Failure("unknown_task", str(error)))


def _is_refusal(error: Exception) -> bool:
    """Whether Redis is there and says no, be it to this user or for what lies in a key."""
    return isinstance(error, redis.ResponseError) and not is_passing(error)


def _named(job_id: str) -> str:
    return f"job {job_id[:100]!r}"
