"""How soon the work goes on after a death, with the settings that workers have by default.

The measured times are shown at the end of the run; docs/reliability.md states them.
"""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Shell, Workers, environment, wait_until
from tests.support.waiting_producers import waiting

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]
RecordProperty = Callable[[str, object], None]

#: Seconds after which everything is started again that died.
MINUTE = 60.0


@pytest.fixture
def environ(server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """The defaults: no time is truncate_names here."""
    return environment(tmp_path, server.url)


class OneChunk:
    """A job of one chunk that works until it is told to go, and says whenever it begins."""

    def __init__(self, new_batch: NewBatch, directory: Path) -> None:
        self._go, self._started = directory / "go", directory / "started"
        self.batch = new_batch(10, seconds=0, until=self._go, started=self._started).submit()
        wait_until(self._started.exists, LONG, "its chunk is at work")

    def at_work_again_after(self, kill: Callable[[], None], max_seconds: float) -> float:
        """Kill what works on it; return the seconds until its records run again."""
        self._started.unlink()
        start = time.monotonic()
        kill()
        wait_until(self._started.exists, max_seconds, "the chunk is at work again")
        return time.monotonic() - start

    def finish(self) -> None:
        self._go.touch()
        self.batch.finish()

    def holder(self, among: list[Workers]) -> Workers:
        """Return the workers whose Celery process has the lease."""
        name = self.batch.store.client.get(f"hugqueue:job:{self.batch.id}:lease:0").decode()
        [found] = [each for each in among if each.process and f"-{each.process.pid}@" in name]
        return found


def alive(process: psutil.Process) -> bool:
    """Whether a process runs: one that nobody has waited for yet is listed for a while."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("parts", "max_seconds"),
    [(["device"], 20), (["celery"], 60), (["celery", "device"], 60)],
    ids=["device", "celery", "both"],
)
def test_a_chunk_is_at_work_again_soon_after_its_worker_died(
    start_workers: StartWorkers,
    new_batch: NewBatch,
    tmp_path: Path,
    record_property: RecordProperty,
    parts: list[str],
    max_seconds: float,
) -> None:
    workers = start_workers()
    chunk = OneChunk(new_batch, tmp_path)
    seconds = chunk.at_work_again_after(lambda: workers.kill_parts(*parts), max_seconds)
    record_property("seconds", round(seconds, 1))
    chunk.finish()


def test_a_chunk_is_soon_at_work_elsewhere_after_one_of_two_workers_died(
    start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path, record_property: RecordProperty
) -> None:
    both = [start_workers(), start_workers()]
    chunk = OneChunk(new_batch, tmp_path)
    seconds = chunk.at_work_again_after(chunk.holder(both).kill, 60)
    record_property("seconds", round(seconds, 1))
    chunk.finish()


def test_everything_is_killed_and_started_again_a_minute_later(
    shell: Shell,
    server: RedisServer,
    start_workers: StartWorkers,
    new_batch: NewBatch,
    tmp_path: Path,
    record_property: RecordProperty,
) -> None:
    both = [start_workers(), start_workers()]
    with waiting(new_batch(400, seconds=0.2), tmp_path) as producer:
        batch = producer.batch
        batch.wait_for_records(100)
        everything = [process for workers in both for process in workers.processes()]
        assert len(everything) == 6, "a supervisor, a Celery process and a device process each"
        server.kill()
        producer.process.kill()
        for workers in both:
            workers.kill()
        wait_until(lambda: not any(map(alive, everything)), 10, "nothing is left")
    time.sleep(MINUTE)  # the time itself is the fault
    start = time.monotonic()
    server.start()
    before = batch.done()
    assert before >= 100
    for _ in both:
        start_workers(ready=False)
    batch.wait_for_records(before + 1)
    record_property("seconds to the next record", round(time.monotonic() - start, 1))
    shell.run("wait", batch.id)
    record_property("seconds to the end", round(time.monotonic() - start, 1))
    batch.check()
    assert batch.runs_twice() <= 6 * batch.chunk, "what six slots were running"
