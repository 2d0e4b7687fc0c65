"""Workers are stopped, by SIGTERM, and started again; nothing is lost, little is repeated."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


def test_a_rolling_restart_under_load_loses_nothing_and_repeats_nothing(
    start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    workers = [start_workers(ready=False), start_workers()]
    batches = [new_batch(300, seconds=0.1).submit(), new_batch(20, 20, seconds=1).submit()]
    for number in range(2):
        batches[0].wait_for_more()
        assert workers[number].stop(LONG) == 0
        workers[number] = start_workers(ready=False)
    for batch in batches:
        batch.finish()
        assert batch.runs_twice() == 0, "running chunks were finished within the grace period"


def test_a_chunk_released_as_the_grace_period_ends_runs_once(
    start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = start_workers(HUGQUEUE_GRACE="1")
    batch = new_batch(60, until=go).submit()
    wait_until(lambda: batch.leased() == 3, LONG, "all slots are at work")
    assert first.stop(LONG) == 0
    assert (batch.done(), batch.leased()) == (0, 0)
    go.touch()
    start_workers(ready=False)
    batch.finish()
    assert set(batch.runs().values()) == {1}


def test_a_job_cancelled_while_it_waits_never_runs(
    start_workers: StartWorkers, new_batch: NewBatch, shell: Shell, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    workers = start_workers()
    blocking, waiting = new_batch(30, until=go).submit(), new_batch(50)
    wait_until(lambda: blocking.leased() == 3, LONG, "all slots are at work")
    waiting.submit()
    shell.run("cancel", waiting.id)
    workers.kill()
    go.touch()
    start_workers(ready=False)
    blocking.finish()
    after = new_batch(10).submit()
    after.finish()
    assert waiting.job.status == "cancelled"
    assert waiting.runs() == {}


@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=pytest.mark.faults)])
def test_a_job_submitted_without_a_worker_runs_when_one_starts(
    start_workers: StartWorkers, new_batch: NewBatch, seconds: float
) -> None:
    batch = new_batch(30).submit()
    time.sleep(seconds)  # the time itself is the fault
    assert batch.job.status == "queued"
    start_workers(ready=False)
    batch.finish()


def test_a_job_whose_tickets_are_all_lost_runs(start_workers: StartWorkers, new_batch: NewBatch) -> None:
    batch = new_batch(30).submit()
    for key in batch.store.client.keys("hugqueue:celery:*"):
        batch.store.client.delete(key)
    start_workers(ready=False)
    batch.finish()


def test_a_job_cancelled_within_a_chunk_ends_soon_and_keeps_what_is_done(
    start_workers: StartWorkers, shell: Shell, server: RedisServer, tmp_path: Path
) -> None:
    source, ends, store = tmp_path / "in.txt", tmp_path / "ends", JobStore(server.client, result_ttl=100)
    source.write_text("".join(f"line {number}\n" for number in range(60)))
    start_workers(HUGQUEUE_RENEW="1")  # the default
    batches = ("-p", "batch=4", "-p", "batch_seconds=1.3", "-p", f"batch_log={ends}")
    job = shell.submit("--task", "test-echo", str(source), "--chunk-size", "12", *batches)
    wait_until(lambda: ends.exists() and len(ends.read_text().splitlines()) == 4, LONG, "one chunk, and a batch more")
    Ledger(server.client, 3).cancel(job)
    cancelled_at = time.time()
    wait_until(lambda: store.job(job).status == "cancelled", LONG, "the job is cancelled")
    ended, batch_ends = time.time(), [float(line) for line in ends.read_text().splitlines()]
    assert ended - max(batch_ends) < 2
    assert sum(end > cancelled_at for end in batch_ends) <= 2, (
        "that at work, and one begun before the worker had looked"
    )
    rows = shell.results(job)
    done = [number for number, row in enumerate(rows) if row.get("output") == f"LINE {number}"]
    assert len(done) == 12 and done == list(range(done[0], done[0] + 12)), "the chunk that was done, and no other"
    assert {row["error_code"] for number, row in enumerate(rows) if number not in done} == {"not_run"}
