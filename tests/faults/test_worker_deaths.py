"""Workers die, by SIGKILL, in whole and in part; the work does not."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


def test_its_processes_die_one_after_another_and_the_work_continues(
    start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    workers = start_workers()
    batch = new_batch(300, seconds=0.2).submit()
    batch.wait_for_records(20)

    celery, device = workers.celery(), workers.device()
    device.kill()
    device.wait(30)
    batch.wait_for_more(60)  # 20 where the machine is idle otherwise
    assert workers.celery() == celery

    device = workers.device()
    celery.kill()
    celery.wait(30)
    psutil.wait_procs([device], 30)
    assert not device.is_running(), "the device process ends with its Celery process"
    batch.wait_for_more(90)  # 60

    for process in (workers.celery(), workers.device()):
        process.kill()
    batch.wait_for_more(90)  # 60
    batch.finish()
    assert batch.runs_twice() <= 2 * 30, "each death of the Celery process repeats three running chunks"


def test_everything_dies_and_is_started_again(
    start_workers: StartWorkers, new_batch: NewBatch, server: RedisServer
) -> None:
    first, second = start_workers(ready=False), start_workers()
    batch = new_batch(200).submit()
    batch.wait_for_records(30)
    first.kill()
    second.kill()
    server.kill()
    server.start()
    start_workers(ready=False)
    batch.finish()


def test_a_worker_whose_supervisor_is_killed_ends_too(start_workers: StartWorkers) -> None:
    workers = start_workers(ready=False)
    below = [workers.celery()]
    workers.processes()[0].send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(below, LONG)
    assert not alive, "even one that had only just begun"


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=[pytest.mark.faults, pytest.mark.timeout(900)])])
def test_one_of_two_workers_is_killed_at_random_moments(
    start_workers: StartWorkers, new_batch: NewBatch, kills: int
) -> None:
    workers = [start_workers(ready=False), start_workers()]
    batch = new_batch(300 * kills, seconds=0.2).submit()
    dice = random.Random(kills)
    for _ in range(kills):
        wait_until(lambda: batch.leased() or batch.job.status.finished, LONG, "a chunk is at work")
        time.sleep(dice.uniform(0, 3))  # the moment is what is random here
        victim = dice.randrange(2)
        workers[victim].kill()
        workers[victim] = start_workers(ready=False)
    batch.finish(600)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("parts", [["device"], ["celery"], ["celery", "device"]], ids=["device", "celery", "both"])
def test_a_part_of_a_worker_is_killed_ten_times_at_random_moments(
    start_workers: StartWorkers, new_batch: NewBatch, parts: list[str]
) -> None:
    both = [start_workers(), start_workers()]
    batch = new_batch(12_000, seconds=0.1).submit()
    dice = random.Random(len(parts))
    for number in range(10):
        batch.wait_for_more()
        time.sleep(dice.uniform(0, 2))  # the moment is what is random here
        before = batch.leased_chunks()
        both[number % 2].kill_parts(*parts)
        # A record that was running at several deaths would be taken for their cause.
        wait_until(lambda: before <= batch.committed(), LONG, "the running chunks are done")  # noqa: B023
    assert not batch.job.status.finished, "all kills fell into the job"
    batch.finish(600)


def test_a_worker_that_cannot_start_is_given_up_with_a_reason(
    start_workers: StartWorkers, environ: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "no-model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    environ["HUGQUEUE_PRELOAD"] = f"fill-mask={broken}"
    workers = start_workers(ready=False)
    assert workers.process
    assert workers.process.wait(LONG) == 1
    assert str(broken) in workers.text()
