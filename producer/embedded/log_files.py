"""Log files of child processes: opened so that they do not grow without end, and read for a reason."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: A log of more bytes is put aside, and a new one begun.
LIMIT = 1024 * 1024
#: Bytes at the end of a log in which a reason is looked for.
_TAIL = 64 * 1024
#: What stands before the reason in the lines of our own programs and of Python's tracebacks.
_MARKS = ("cannot start: ", "Error: ", " ERROR ")


def open_log(path: Path) -> int:
    """Return a file descriptor that appends to the log, which only its owner can read.

    What went before is kept: in the log itself, or in the one put aside (`.1`), to which whoever has it open still
    writes.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LIMIT:
            path.replace(rotated(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def rotated(path: Path) -> Path:
    """Return where a log is put when a new one begins."""
    return path.with_name(f"{path.name}.1")


def read_entries(path: Path) -> Iterator[str]:
    """Yield the entries of a log, that put aside first: a line, and the indented ones that belong to it."""
    for file in (rotated(path), path):
        entry = ""
        with contextlib.suppress(FileNotFoundError), file.open(errors="replace") as lines:
            for line in lines:
                if entry and not line.startswith((" ", "\t")):
                    yield entry
                    entry = ""
                entry += line
        if entry:
            yield entry


def last_error(path: Path, start: int = 0) -> str:
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
