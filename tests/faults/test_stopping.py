"""Workers are stopped, by SIGTERM, and started again; nothing is lost, little is repeated."""

from collections.abc import Callable
from pathlib import Path

from tests.faults.jobs import LONG, Batch
from tests.processes import Shell, Workers, wait_until

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
        assert batch.runs_twice() == 0, "chunks in hand were finished within the grace period"


def test_what_is_given_back_when_the_grace_period_ends_runs_once(
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


def test_a_job_submitted_while_no_worker_lives_runs_when_one_comes(
    start_workers: StartWorkers, new_batch: NewBatch, server: "object"
) -> None:
    batch = new_batch(30).submit()
    assert batch.job.status == "queued"
    start_workers(ready=False)
    batch.finish()


def test_a_job_whose_tickets_are_all_lost_runs(start_workers: StartWorkers, new_batch: NewBatch) -> None:
    batch = new_batch(30).submit()
    for key in batch.store.client.keys("hugqueue:celery:*"):
        batch.store.client.delete(key)
    start_workers(ready=False)
    batch.finish()
