"""Log files of child processes: opened so that they do not grow without end, and read for a reason."""

import os
from pathlib import Path

#: A log of more bytes is begun anew.
LIMIT = 1024 * 1024
#: Bytes at the end of a log in which a reason is looked for.
_TAIL = 64 * 1024
#: What stands before the reason in the lines of our own programs and of Python's tracebacks.
_MARKS = ("cannot start: ", "Error: ", " ERROR ")


def open_log(path: Path) -> int:
    """Return a file descriptor that appends to the log, which only its owner can read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if os.fstat(fd).st_size > LIMIT:
        os.ftruncate(fd, 0)  # whoever still writes to it appends, and goes on at the beginning
    return fd


def reason_in(path: Path, start: int = 0) -> str:
    """Return the last line from byte `start` on that says what went wrong, else the last line of all."""
    lines = [line.strip() for line in _tail(path, start).splitlines() if line.strip()]
    for line in reversed(lines):
        for mark in _MARKS:
            if mark in line:
                return line.partition(mark)[2]
    return lines[-1] if lines else "it said nothing"


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(start, path.stat().st_size - _TAIL))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
