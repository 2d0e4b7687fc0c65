"""A device that cannot be had any longer: the worker ends with the reason, and is started again a few times."""

from collections.abc import Callable

import psutil
import pytest

from common.queue.heartbeats import live_workers
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


def kill_device_processes(workers: Workers, server: RedisServer) -> None:
    """Kill one after the other, from when the worker is ready until it ends."""
    celery = workers.celery()

    def ready() -> bool:
        return any(beat.pid == celery.pid and beat.state == "ready" for beat in live_workers(server.client))

    wait_until(ready, LONG, "the worker is ready")

    def ended() -> bool:
        try:
            for process in celery.children():
                process.kill()
            return celery.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return not celery.is_running()

    wait_until(ended, LONG, "the worker has ended")


@pytest.mark.faults
def test_a_worker_whose_device_keeps_dying_exits_and_its_jobs_wait(
    start_workers: StartWorkers, new_batch: NewBatch, server: RedisServer
) -> None:
    workers = start_workers()
    batch = new_batch(30).accept()
    kill_device_processes(workers, server)
    wait_until(lambda: "ended with status 69" in workers.text(), LONG, "the supervisor has seen it")
    assert "this worker is exiting: The device process ended 5 times in a row" in workers.text()
    batch.finish()
    assert batch.job.status == "completed"


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_the_supervisor_gives_up_such_a_worker_after_five_exits(
    start_workers: StartWorkers, server: RedisServer
) -> None:
    workers = start_workers()
    for _ in range(5):
        kill_device_processes(workers, server)
    assert workers.process
    assert workers.process.wait(LONG) == 1
    assert "giving up" in workers.text()
