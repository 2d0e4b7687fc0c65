"""Held leases: one thread renews them all, and cancels the work of those that are lost."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import redis

from common.errors import Cancelled, StorageError
from common.queue.ledger import Lease, Ledger
from common.redis.client import is_transient, retry_while_unavailable
from common.reporting import CancelToken

logger = logging.getLogger(__name__)

T = TypeVar("T")


def retry_until_cancelled(step: Callable[[], T], cancel_token: CancelToken, *, files: float = 0.0) -> T:
    """Return what `step` returns, trying again while Redis is away or full.

    Args:
        step: what to do.
        cancel_token: ends the waiting.
        files: seconds for which to try again if files are not available, since nobody knows whether that passes.

    Raises:
        Cancelled: it was cancelled meanwhile.
        redis.RedisError: an error that waiting does not fix.
        StorageError: waiting for `files` seconds did not fix it.
    """
    pause, end = 0.1, time.monotonic() + files

    def wait(error: Exception) -> None:
        nonlocal pause
        if isinstance(error, StorageError) and time.monotonic() > end:
            raise error
        logger.warning("waiting for %s: %s", "files" if isinstance(error, StorageError) else "Redis", error)
        if cancel_token.wait(pause):
            raise Cancelled
        pause = min(pause * 2, 5.0)

    return retry_while_unavailable(step, wait)


class HeldLease:
    """A lease that somebody in this process works under.

    `cancel_token` asks them to stop. Its reason is the job's status, `lost` if the lease is someone else's by now, or
    `stopping`.
    """

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.cancel_token = CancelToken()

    def retry(self, step: Callable[[], T], *, files: float = 0.0) -> T:
        """Return what `step` returns; see `retry_until_cancelled`."""
        return retry_until_cancelled(step, self.cancel_token, files=files)


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
        """End; leases still held expire by themselves."""
        self._stopped.set()
        self._thread.join()

    @contextlib.contextmanager
    def renewing(self, lease: Lease) -> Iterator[HeldLease]:
        """Renew `lease` as long as the block runs."""
        held = HeldLease(lease)
        with self._lock:
            self._held.add(held)
            if self._stopping:
                held.cancel_token.cancel("stopping")
        try:
            yield held
        finally:
            with self._lock:
                self._held.discard(held)
                self._idle.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until no lease is held; return whether that happened in time."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._held, seconds)

    def cancel_all(self) -> None:
        """Cancel the work under all leases, and under those to come: the worker is stopping."""
        with self._lock:
            self._stopping = True
            for held in self._held:
                held.cancel_token.cancel("stopping")

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            with self._lock:
                all_held = list(self._held)
            for held in all_held:
                self._renew(held)

    def _renew(self, held: HeldLease) -> None:
        try:
            status = self._ledger.renew(held.lease)
        except redis.RedisError as error:
            # The work continues: when Redis is back, the lease is renewed if nobody else has taken it.
            level = logging.INFO if is_transient(error) else logging.ERROR
            logger.log(level, "lease of chunk %d not renewed: %s", held.lease.chunk, error)
            return
        except Exception:  # the boundary: this thread keeps all leases of the worker
            logger.exception("lease of chunk %d not renewed", held.lease.chunk)
            return
        if status not in ("queued", "running"):
            held.cancel_token.cancel(status)
