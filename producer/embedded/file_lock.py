"""File locks (flock) that the kernel releases when their process ends, even if it is killed."""

import fcntl
import os
import time
from pathlib import Path

_POLL_SECONDS = 0.02


class LockFile:
    """An open file that can be locked. Closing it releases the lock.

    Child processes do not inherit it, unless they are passed `fileno()`: then both hold the same lock.

    Raises:
        OSError: the file cannot be opened, or its file system does not support locks.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def fileno(self) -> int:
        """Return the file descriptor, for `pass_fds`."""
        return self._fd

    def lock_shared(self, timeout: float = 0.0) -> bool:
        """Acquire a shared lock; return whether that succeeded within `timeout` seconds."""
        return self._acquire(fcntl.LOCK_SH, timeout)

    def lock_exclusive(self, timeout: float = 0.0) -> bool:
        """Acquire an exclusive lock; return whether that succeeded within `timeout` seconds."""
        return self._acquire(fcntl.LOCK_EX, timeout)

    def _acquire(self, kind: int, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    return False
            time.sleep(_POLL_SECONDS)

    def touch(self) -> None:
        """Update the file's modification time, which other processes watch."""
        now = time.time_ns()
        os.utime(self._fd, ns=(now, now))

    def write(self, text: str) -> None:
        """Replace the file's content."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def __enter__(self) -> "LockFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def is_locked_exclusively(path: Path) -> bool:
    """Return whether a process holds an exclusive lock."""
    with LockFile(path) as lock:
        return not lock.lock_shared()


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock, shared or exclusive."""
    with LockFile(path) as lock:
        return not lock.lock_exclusive()
