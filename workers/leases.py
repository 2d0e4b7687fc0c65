"""Leases in hand: one thread renews them all, and tells their holders when to stop.

A turn that is told to stop (its job was cancelled or failed, its lease was taken over, the worker is stopping)
finds `cancelled` set, and why in `reason`.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import redis

from common.errors import Cancelled, StorageError
from common.queue.ledger import Lease, Ledger
from common.redis.client import is_transient

logger = logging.getLogger(__name__)

T = TypeVar("T")


def retry_while_unavailable(step: Callable[[], T], cancelled: threading.Event, *, files: float = 0.0) -> T:
    """Return what `step` gives, trying again while Redis is away or full, until that is given up.

    Args:
        step: what to do.
        cancelled: ends the waiting.
        files: seconds for which to try again where files cannot be had: nobody knows whether that passes.

    Raises:
        Cancelled: it was given up meanwhile.
        redis.RedisError: waiting does not mend it.
        StorageError: waiting for so many seconds did not mend it.
    """
    pause, end = 0.1, time.monotonic() + files
    while True:
        try:
            return step()
        except redis.RedisError as error:
            if not is_transient(error):
                raise
            logger.warning("waiting for Redis: %s", error)
        except StorageError as error:
            if time.monotonic() > end:
                raise
            logger.warning("waiting for files: %s", error)
        if cancelled.wait(pause):
            raise Cancelled
        pause = min(pause * 2, 5.0)


class HeldLease:
    """A lease somebody in this process works under."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.cancelled = threading.Event()
        self.reason = ""

    def cancel(self, reason: str) -> None:
        """Tell the holder to stop; the first reason stays."""
        if not self.cancelled.is_set():
            self.reason = reason
            self.cancelled.set()

    def retry_while_unavailable(self, step: Callable[[], T], *, files: float = 0.0) -> T:
        """Return what `step` gives, as `patiently` does, until this turn is given up."""
        return retry_while_unavailable(step, self.cancelled, files=files)


class LeaseRenewer:
    """Renews the leases of this process every `interval` seconds until it is stopped."""

    def __init__(self, ledger: Ledger, interval: float) -> None:
        self._ledger = ledger
        self._interval = interval
        self._held: set[HeldLease] = set()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._stopped = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """End; leases still held run out by themselves."""
        self._stopped.set()
        self._thread.join()

    @contextlib.contextmanager
    def hold(self, lease: Lease) -> Iterator[HeldLease]:
        """Renew `lease` as long as the block runs."""
        held = HeldLease(lease)
        with self._lock:
            self._held.add(held)
            if self._stopping:
                held.cancel("stopping")
        try:
            yield held
        finally:
            with self._lock:
                self._held.discard(held)
                self._idle.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no lease is held; return whether that came about in time."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._held, seconds)

    def cancel_all(self) -> None:
        """Tell all holders, and those to come, that the worker is stopping."""
        with self._lock:
            self._stopping = True
            for held in self._held:
                held.cancel("stopping")

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            with self._lock:
                held = list(self._held)
            for one in held:
                self._renew(one)

    def _renew(self, held: HeldLease) -> None:
        try:
            status = self._ledger.renew(held.lease)
        except redis.RedisError as error:
            # The work goes on: when Redis is back, the lease is taken up again if nobody else has.
            level = logging.INFO if is_transient(error) else logging.ERROR
            logger.log(level, "lease of chunk %d not renewed: %s", held.lease.chunk, error)
            return
        except Exception:  # the boundary: this thread keeps all leases of the worker
            logger.exception("lease of chunk %d not renewed", held.lease.chunk)
            return
        if status not in ("queued", "running"):
            held.cancel(status)
