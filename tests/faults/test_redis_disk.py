"""The disk of Redis is full: it takes no more writes until there is room; workers wait, and go on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fault_jobs import LONG, Batch
from tests.support.full_disks import fill, small_disk
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server whose append-only file lies on a disk of 4 MB."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        started = RedisServer(folder).start()
        yield started
        started.kill()


def test_workers_wait_until_redis_can_write_again_and_lose_nothing(
    shell: Shell, start_workers: StartWorkers, new_batch: NewBatch, server: RedisServer
) -> None:
    workers = start_workers()
    pids = (workers.celery().pid, workers.device().pid)
    batch = new_batch(60, seconds=0.3).submit()
    batch.wait_for_records(10)
    filler = fill(server.directory)
    wait_until(lambda: "waiting for Redis: MISCONF" in workers.text(), LONG, "a turn waits with its outcomes")
    said = shell.run("submit", *batch.arguments(), status=1).stderr
    assert "cannot write to its disk" in said
    filler.unlink()
    batch.finish()
    assert batch.runs_twice() == 0
    assert (workers.celery().pid, workers.device().pid) == pids
