"""Tickets that a worker sends: those that its turns call for, and those that it leaves to other workers."""

import heapq
import logging
import random
import threading
import time
from collections.abc import Iterable

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from common.broker.app import send_tickets
from common.errors import UsageError
from common.jobs import JobSpec

logger = logging.getLogger(__name__)

#: Seconds for which a ticket is kept that this worker leaves to others. Without them a lone worker would spin; spread,
#: so that a worker that does serve the job need not wait for all of them at once.
_DELAY_SECONDS = (0.25, 0.75)
#: With more tickets kept than that, each is kept for longer, up to so many times as long: tickets that go round and
#: round must not be what workers and Redis are busy with.
_MANY_DELAYED, _MAX_STRETCH = 20, 6.0


class TicketSender:
    """Sends tickets, at once or a little later; no slot waits for the latter."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._delayed: list[tuple[float, str, JobSpec]] = []  #: a heap, by when to send; guarded by `_changed`
        self._names: set[str] = set()  #: of the tickets kept
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tickets", daemon=True)

    def start(self) -> None:
        """Begin to send what is kept."""
        self._thread.start()

    def stop(self) -> None:
        """Send at once what is kept, and from now on."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def send(self, spec: JobSpec, tickets: Iterable[str]) -> None:
        """Put tickets at the tail of their queue; those that cannot be sent are the reaper's."""
        try:
            send_tickets(self._app, spec, tickets)
        except (OperationalError, redis.RedisError, UsageError) as error:
            logger.warning("tickets of job %s not sent, the reaper will: %s", spec.id, error)

    def requeue(self, spec: JobSpec, ticket: str) -> None:
        """Leave a turn to another worker: the ticket goes to the tail of its queue in a moment."""
        with self._changed:
            if not self._stopping:
                if ticket not in self._names:
                    self._names.add(ticket)
                    heapq.heappush(self._delayed, (time.monotonic() + self._pause(), ticket, spec))
                    self._changed.notify_all()
                return
        self.send(spec, [ticket])

    def _pause(self) -> float:
        stretched = min(max(1.0, len(self._delayed) / _MANY_DELAYED), _MAX_STRETCH)
        return random.uniform(*_DELAY_SECONDS) * stretched  # noqa: S311 - jitter

    def _run(self) -> None:
        while (due := self._next()) is not None:
            ticket, spec = due
            self.send(spec, [ticket])

    def _next(self) -> tuple[str, JobSpec] | None:
        """Return the next ticket when its time has come; None when all are sent and there will be no more."""
        with self._changed:
            while not (self._stopping or (self._delayed and self._delayed[0][0] <= time.monotonic())):
                self._changed.wait(self._delayed[0][0] - time.monotonic() if self._delayed else None)
            if not self._delayed:
                return None
            _, ticket, spec = heapq.heappop(self._delayed)
            self._names.discard(ticket)
            return ticket, spec
