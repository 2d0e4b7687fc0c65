"""Redis is full (`maxmemory`, `noeviction`): a clear error at submit; workers live, wait, and go on."""

import time
from collections.abc import Callable, Iterator

import pytest
import redis

from common.redis.client import explain, is_transient
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


@pytest.fixture
def set_space(server: RedisServer) -> Iterator[Callable[[bool], None]]:
    """Call it with False to leave Redis no room, with True to give it some again."""

    def set_memory(some: bool) -> None:
        server.client.config_set("maxmemory", 0 if some else 1)

    yield set_memory
    set_memory(True)


def test_submit_says_that_redis_is_full_and_leaves_nothing(
    shell: Shell, server: RedisServer, set_space: Callable[[bool], None], new_batch: NewBatch
) -> None:
    batch = new_batch()
    set_space(False)
    start = time.monotonic()
    done = shell.run("submit", *batch.arguments(), status=1)
    assert "is full (maxmemory)" in done.stderr and done.stdout == ""
    assert time.monotonic() - start < 10
    set_space(True)
    assert server.client.keys("hugqueue:job:*") == []


def test_a_submit_during_which_redis_fills_up_leaves_nothing(
    shell: Shell, server: RedisServer, set_space: Callable[[bool], None], new_batch: NewBatch
) -> None:
    batch = new_batch(20_000, 1)
    process = shell.popen("submit", *batch.arguments())
    wait_until(lambda: server.client.keys("hugqueue:job:*:input"), LONG, "its first chunks are there")
    set_space(False)
    stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 1 and stdout == ""
    assert "is full (maxmemory)" in stderr
    assert server.client.keys("hugqueue:job:*") == []


def test_workers_survive_a_full_redis_and_commit_when_memory_is_free(
    start_workers: StartWorkers, set_space: Callable[[bool], None], new_batch: NewBatch
) -> None:
    workers = start_workers()
    pids = (workers.celery().pid, workers.device().pid)
    batch = new_batch(seconds=0.3).submit()
    batch.wait_for_records(20)
    set_space(False)
    wait_until(lambda: workers.text().count("waiting for Redis: ") >= 3, LONG, "three turns wait with their outcomes")
    before = batch.done()
    wait_until(lambda: "not renewed" not in workers.text() and batch.leased() == 3, LONG, "leases are kept")
    assert batch.done() == before
    set_space(True)
    batch.finish()
    assert batch.runs_twice() == 0
    assert (workers.celery().pid, workers.device().pid) == pids


def test_a_worker_starts_while_redis_is_full(
    start_workers: StartWorkers, set_space: Callable[[bool], None], new_batch: NewBatch
) -> None:
    batch = new_batch(30).submit()
    set_space(False)
    workers = start_workers(ready=False)
    wait_until(lambda: " ready." in workers.text(), LONG, "Celery is ready")
    assert "Unrecoverable error" not in workers.text()
    pid = workers.celery().pid
    set_space(True)
    batch.finish()
    assert workers.celery().pid == pid


def test_a_full_redis_is_recognized_by_the_script_error_of_redis_6_2() -> None:
    said = "Error running script (call to f_766222): @user_script:114: @user_script: 114: -OOM command not allowed when"
    error = redis.ResponseError(f"{said} used memory > 'maxmemory'.")
    assert is_transient(error)
    assert "is full (maxmemory)" in explain(error, "redis://127.0.0.1")
