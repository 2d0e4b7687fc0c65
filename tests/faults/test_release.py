"""Chunks that a worker gives back: they go on elsewhere at once, and nothing is held against their records."""

from collections.abc import Callable
from pathlib import Path

from common.redis.keys import JobKeys
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import Workers, wait_until
from workers.celery_worker.isolation_journal import ISOLATE_AFTER

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]

#: A reaper that does not look again while a test runs.
NEVER = "600"


def test_a_released_chunk_runs_elsewhere_without_waiting_for_the_reaper(
    start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = start_workers(HUGQUEUE_GRACE="1", HUGQUEUE_REAP=NEVER)
    batch = new_batch(30, until=go).submit()
    wait_until(lambda: batch.leased() == 3, LONG, "all chunks are at work")
    start_workers(HUGQUEUE_REAP=NEVER)
    assert first.stop(LONG) == 0
    wait_until(lambda: batch.leased() == 3, LONG, "the other worker has them")
    go.touch()
    batch.finish()
    assert set(batch.runs().values()) == {1}


def test_restarts_during_an_isolated_record_do_not_fail_it(
    start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    batch = new_batch(2, until=go).submit()
    batch.store.client.hset(JobKeys.of(batch.id).attempts, "0", ISOLATE_AFTER)
    for _ in range(2):
        workers = start_workers(ready=False, HUGQUEUE_GRACE="0.5")
        wait_until(
            lambda: batch.store.client.hexists(JobKeys.of(batch.id).attempts, "0:isolated"), LONG, "it runs alone"
        )
        assert workers.stop(LONG) == 0
    go.touch()
    start_workers(ready=False)
    batch.finish()
