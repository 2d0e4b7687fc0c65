"""Queue overhead: the share of a long job's time in which the device process does not compute."""

import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.queue import running_queue
from benchmarks.strategies import Work, whole_job

#: The log line of a worker for each chunk (`workers.celery_worker.process_chunk`).
_CHUNK = re.compile(r"chunk \d+ of \S+: ([\d,]+) done.*?, ([\d,]+) records/s")


def overhead(work: Work, texts: Sequence[str]) -> str:
    """Return a line of Markdown: 1 - compute / wall of a job from file to file, its command's start included."""
    with tempfile.TemporaryDirectory() as base:
        directory = Path(base)
        with running_queue(work, directory) as environ:
            job = whole_job(work, directory, environ)
            job(texts[:8])
            said = len((directory / "log").read_text(errors="replace"))
            begun = time.perf_counter()
            job(texts)
            wall = time.perf_counter() - begun
            log = (directory / "log").read_text(errors="replace")[said:]
    compute = sum(_number(done) / _number(rate) for done, rate in _CHUNK.findall(log))
    return (
        f"\nQueue overhead, {work.task}, {len(texts)} records of mixed lengths in one job: {wall:.1f} s from "
        f"file to file, {compute:.1f} s of them computing: **{100 * (1 - compute / wall):.1f} %**."
    )


def _number(text: str) -> int:
    return int(text.replace(",", ""))
