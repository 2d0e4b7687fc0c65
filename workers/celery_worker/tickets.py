"""Sending tickets: for the chunks of this worker's jobs, and for those that it leaves to other workers."""

import logging
import random
import threading
import time
from collections.abc import Iterable

import redis

from common.broker.tickets import send_tickets
from common.errors import UsageError
from common.jobs import JobSpec

logger = logging.getLogger(__name__)

#: Seconds before a requeued ticket is sent. Without them a lone worker would spin; they vary, so that a worker that
#: serves the job need not wait for all tickets at once.
_DELAY_SECONDS = (0.25, 0.75)
#: With more delayed tickets than that, each waits longer, at most `_MAX_STRETCH` times as long: workers and Redis must
#: not be busy with tickets that nobody takes.
_MANY_DELAYED, _MAX_STRETCH = 20, 6.0
#: How often delayed tickets are checked, in seconds.
_POLL_SECONDS = 0.05


class TicketSender:
    """Sends tickets, at once or after a short delay, for which no slot waits."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._lock = threading.Lock()
        self._delayed: dict[str, tuple[float, JobSpec]] = {}  #: ticket -> when to send it, its job
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tickets", daemon=True)

    def start(self) -> None:
        """Begin to send delayed tickets."""
        self._thread.start()

    def stop(self) -> None:
        """Send all delayed tickets now, and further ones at once."""
        with self._lock:
            self._stopping.set()
        self._thread.join()

    def send(self, spec: JobSpec, tickets: Iterable[str]) -> None:
        """Put tickets at the tail of their queue. The reaper replaces those that cannot be sent."""
        try:
            send_tickets(self._client, spec, tickets)
        except (redis.RedisError, UsageError) as error:
            logger.warning("tickets of job %s not sent, the reaper will send them: %s", spec.id, error)

    def requeue(self, spec: JobSpec, ticket: str) -> None:
        """Put a ticket at the tail of its queue after a short delay, for another worker or for later."""
        stretch = min(max(1.0, len(self._delayed) / _MANY_DELAYED), _MAX_STRETCH)
        self.send_later(spec, ticket, random.uniform(*_DELAY_SECONDS) * stretch)  # noqa: S311 - jitter

    def send_later(self, spec: JobSpec, ticket: str, seconds: float) -> None:
        """Put a ticket at the tail of its queue in `seconds` seconds, unless it is recalled before."""
        with self._lock:
            if not self._stopping.is_set():
                self._delayed.setdefault(ticket, (time.monotonic() + seconds, spec))
                return
        self.send(spec, [ticket])

    def recall(self, ticket: str) -> bool:
        """Return whether a ticket was still to be sent; it is not sent then."""
        with self._lock:
            return self._delayed.pop(ticket, None) is not None

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            self._send_due(time.monotonic())
        self._send_due(float("inf"))

    def _send_due(self, now: float) -> None:
        with self._lock:
            due = {ticket: spec for ticket, (at, spec) in self._delayed.items() if at <= now}
            self._delayed = {ticket: entry for ticket, entry in self._delayed.items() if ticket not in due}
        for ticket, spec in due.items():
            self.send(spec, [ticket])
