"""The reaper: finds chunks whose worker is gone, tickets that were lost, and jobs whose producer died.

Every worker has one on a timer; a key in Redis lets one of them work at a time.
"""

import logging
import threading
import time

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from common import keys
from common.errors import UnknownJob
from common.heartbeats import Heartbeat, living, ticket_target
from common.ledger import MIN_TICKETS, Ledger
from common.queue import send_tickets, waiting_tickets
from common.settings import Settings
from common.store import Store

logger = logging.getLogger(__name__)


class Reaper:
    """Looks after all unfinished jobs every `settings.reap` seconds."""

    def __init__(self, name: str, app: Celery, store: Store, ledger: Ledger, settings: Settings) -> None:
        self._name = name
        self._app = app
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._missing: set[str] = set()
        self._judge_from = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._reap_for_ever, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin at once: a worker that joins sends the tickets that its own slots call for."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self._thread.join()

    def _reap_for_ever(self) -> None:
        while True:
            try:
                if self._my_turn():
                    self.reap()
            except (redis.RedisError, OperationalError) as error:
                # Others could not renew their leases either: they get a whole lease to come back.
                self._judge_from = time.monotonic() + self._settings.lease
                logger.info("reaper waits for Redis: %s", error)
            if self._stopped.wait(self._settings.reap):
                return

    def _my_turn(self) -> bool:
        client, hold = self._store.client, int(self._settings.reap * 2000)
        if client.set(keys.REAPER, self._name, nx=True, px=hold):
            return True
        if client.get(keys.REAPER) != self._name.encode():
            return False
        client.pexpire(keys.REAPER, hold)
        return True

    def reap(self) -> None:
        """Look after every unfinished job once.

        Raises:
            redis.RedisError: Redis is away.
            kombu.exceptions.OperationalError: Redis is away, as kombu says it.
        """
        jobs = self._store.active()
        if not jobs:
            return
        if self._leases_may_be_judged():
            for job_id in jobs:
                self._open_lost_chunks(job_id)
        self._send_missing_tickets(jobs)

    def _leases_may_be_judged(self) -> bool:
        """After a restart of Redis all leases look lost: their holders get a whole lease to renew them."""
        uptime = float(self._store.client.info("server").get("uptime_in_seconds", 0))
        return uptime > self._settings.lease and time.monotonic() > self._judge_from

    def _open_lost_chunks(self, job_id: str) -> None:
        opened = self._ledger.reap(job_id, self._settings.producer_ttl)
        if opened == [-1]:
            logger.warning("job %s given up: its producer died in the middle of submitting", job_id)
        elif opened:
            logger.warning("job %s: chunks %s open again, their workers are gone", job_id, opened)

    def _send_missing_tickets(self, jobs: list[str]) -> None:
        waiting = waiting_tickets(self._store.client)
        workers = living(self._store.client)
        missing: set[str] = set()
        for job_id in jobs:
            gone = self._ledger.tickets(job_id) - waiting
            # Missing twice in a row: a ticket noted but not yet sent is missing once.
            self._ledger.void(job_id, sorted(gone & self._missing))
            missing |= gone
            self._top_up(job_id, workers)
        self._missing = missing

    def _top_up(self, job_id: str, workers: list[Heartbeat]) -> None:
        try:
            spec = self._store.job(job_id).spec
        except UnknownJob:
            self._store.delete(job_id)
            return
        tickets = self._ledger.issue(job_id, ticket_target(workers, spec.queue, MIN_TICKETS))
        send_tickets(self._app, spec, tickets)
