"""Log files of the embedded processes: rotation, the last error in a log, and the entries about one job."""

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from common.jobs import Job

#: Bytes from which a log is rotated when it is opened.
MAX_BYTES = 1024 * 1024
#: Bytes at the end of a log that are searched for an error.
_TAIL_BYTES = 64 * 1024
#: What precedes the reason in the lines of our programs and of Python's tracebacks.
_ERROR_MARKS = ("cannot start: ", "Error: ", " ERROR ")
#: The time at the start of an entry, in the format of logging and Celery.
_TIME = re.compile(r"\[?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3}")
_JOB_ID = re.compile(r"\bjob ([0-9a-f]{12})\b")


def open_log(path: Path) -> int:
    """Return a file descriptor that appends to the log, readable only by its owner.

    A large log is first renamed to `.1`; processes that have it open continue to write there.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_BYTES:
            path.replace(rotated(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def rotated(path: Path) -> Path:
    """Return where a log goes when it is rotated."""
    return path.with_name(f"{path.name}.1")


def last_error(path: Path, start: int = 0) -> str:
    """Return the last error logged after byte `start`, or the last line if there is none."""
    lines = [line.strip() for line in _tail(path, start).splitlines() if line.strip()]
    for line in reversed(lines):
        for mark in _ERROR_MARKS:
            if mark in line:
                return line.partition(mark)[2]
    return lines[-1] if lines else "no output"


def _tail(path: Path, start: int) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(start, path.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def job_entries(job: Job, path: Path) -> Iterator[str]:
    """Yield the log entries that name the job, and those from the time it ran that name no job."""
    for entry in read_entries(path):
        named = _JOB_ID.findall(entry)
        if job.id in named or (not named and _is_within(entry, job)):
            yield entry.rstrip("\n")


def read_entries(path: Path) -> Iterator[str]:
    """Yield the entries, those of the rotated log first: a line and the indented lines that follow it."""
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


def _is_within(entry: str, job: Job) -> bool:
    found = _TIME.match(entry)
    if found is None:
        return False
    at = datetime.fromisoformat(found[1]).timestamp()
    return int(job.spec.created_at) <= at and (job.finished_at is None or at <= job.finished_at + 1)
