"""Locks on files, which end with the process that holds them, even one that is killed. Knows not what they guard."""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

#: Seconds between two tries.
_PAUSE = 0.02


class LockFile:
    """An open file and, once one is taken, a lock on it. Closing gives the lock up.

    Child processes do not inherit it, unless one is handed `fileno()` on purpose: then both hold the same lock.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def fileno(self) -> int:
        """Return the file's number, for `pass_fds`."""
        return self._fd

    def lock_shared(self, timeout: float = 0.0) -> bool:
        """Take the lock together with others that share it; return whether it was had within `patience` seconds."""
        return self._take(fcntl.LOCK_SH, timeout)

    def lock_exclusive(self, timeout: float = 0.0) -> bool:
        """Take the lock alone; return whether it was had within `patience` seconds."""
        return self._take(fcntl.LOCK_EX, timeout)

    def _take(self, kind: int, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    return False
            time.sleep(_PAUSE)

    def touch(self) -> None:
        """Leave a new time of change on the file: a sign to whoever watches it."""
        now = time.time_ns()
        os.utime(self._fd, ns=(now, now))

    def write(self, text: str) -> None:
        """Make `text` all that the file holds."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def close(self) -> None:
        """Give up the lock and the file."""
        os.close(self._fd)

    def __enter__(self) -> "LockFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_locked_exclusively(path: Path) -> bool:
    """Return whether somebody holds the lock alone."""
    with LockFile(path) as lock:
        return not lock.lock_shared()


def is_locked(path: Path) -> bool:
    """Return whether somebody holds the lock, alone or with others."""
    with LockFile(path) as lock:
        return not lock.lock_exclusive()
