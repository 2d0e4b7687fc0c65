"""Redis dies, freezes, or drops its connections: who waits goes on, who begins is told, and no work is done twice."""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from common.queue.ledger import Ledger
from common.settings import Settings
from producer.job_handle import JobHandle
from producer.queue_connection import QueueConnection
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Shell, Workers, wait_until
from tests.support.waiting_producers import expect_each_refused, expect_refused, waiting

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]
Kill = Callable[["redis.Redis"], None]

#: How Redis is to sync its append-only file; under load both are tried in the quick half, too.
POLICIES = ["everysec", pytest.param("always", marks=pytest.mark.faults)]


def start_again(server: RedisServer, policy: str) -> None:
    """Start Redis again with that `appendfsync`."""
    server.kill()
    server.options = ("--appendfsync", policy)
    server.start()


def pids(workers: Workers) -> tuple[int, int]:
    return workers.celery().pid, workers.device().pid


def lost_connections(workers: Workers) -> int:
    return workers.text().count("Connection to broker lost")


def kill_all(client: "redis.Redis") -> None:
    for kind in ("normal", "pubsub"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def kill_one(client: "redis.Redis") -> None:
    ids = [int(other["id"]) for other in client.client_list()]
    client.client_kill_filter(_id=random.choice(ids), skipme=True)


@contextlib.contextmanager
def repeated(kill: Kill, server: RedisServer, pause: float) -> Iterator[None]:
    """Kill connections again and again while the block runs."""
    over = threading.Event()

    def repeat(client: "redis.Redis") -> None:
        while not over.wait(pause):
            kill(client)

    thread = threading.Thread(target=repeat, args=(server.client,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("policy", POLICIES)
def test_redis_is_killed_under_load_and_started_again(
    shell: Shell, server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path, policy: str
) -> None:
    start_again(server, policy)
    go = tmp_path / "go"
    workers = start_workers()
    before = pids(workers)
    with waiting(new_batch(100, seconds=0.05, until=go), tmp_path) as producer:
        wait_until(lambda: producer.batch.leased() == 3, LONG, "all slots are at work")
        accepted = new_batch(30).submit()
        server.kill()
        producer.wait_until_it_says("cannot be reached")
        expect_refused(shell, accepted, "cannot be reached")
        go.touch()
        wait_until(lambda: "waiting for Redis: " in workers.text(), LONG, "outcomes wait to be written")
        server.start()
        producer.finish()
    accepted.finish()
    assert producer.said().count("Waiting for it.") == 1
    assert producer.batch.runs_twice() == accepted.runs_twice() == 0
    assert pids(workers) == before
    assert "EMERGENCY DUMP" not in workers.text()


@pytest.mark.parametrize("policy", POLICIES)
def test_redis_is_killed_while_nothing_is_to_be_done(
    server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch, policy: str
) -> None:
    start_again(server, policy)
    workers = start_workers()
    wait_until(lambda: " ready." in workers.text(), LONG, "Celery is connected")
    before = pids(workers)
    server.kill()
    wait_until(lambda: lost_connections(workers), LONG, "the worker notices")
    server.start()
    new_batch(30).submit().finish()
    assert pids(workers) == before


def test_a_job_whose_last_chunk_ends_without_redis_is_completed_later(
    server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    workers = start_workers()
    batch = new_batch(10, until=go).submit()
    wait_until(batch.leased, LONG, "it is at work")
    server.kill()
    go.touch()
    wait_until(lambda: "waiting for Redis: " in workers.text(), LONG, "its outcomes wait to be written")
    server.start()
    batch.finish()
    assert set(batch.runs().values()) == {1}


@pytest.mark.parametrize(
    ("policy", "times"),
    [("everysec", 2), *(pytest.param(policy, 10, marks=pytest.mark.faults) for policy in ("everysec", "always"))],
)
def test_a_job_that_ends_as_redis_is_killed_is_completed(
    server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path, policy: str, times: int
) -> None:
    start_again(server, policy)
    start_workers()
    for number in range(times):
        go = tmp_path / f"go-{number}"
        batch = new_batch(10, seconds=0, until=go).submit()
        wait_until(batch.leased, LONG, "it is at work")
        go.touch()
        # Just before its commit, in its midst, or when somebody may have seen that it is completed.
        wait_until(lambda: batch.job.status.finished if number % 2 else batch.runs(), LONG, "it ends")  # noqa: B023
        server.kill()
        server.start()
        assert batch.job.status == "completed" or number % 2 == 0, "what was seen is still true"
        batch.finish()
        assert set(batch.runs().values()) == {1}


@pytest.mark.parametrize(
    "seconds", [0, pytest.param(75, marks=[pytest.mark.faults, pytest.mark.timeout(900)], id="75-seconds")]
)
def test_redis_is_frozen_under_load(
    shell: Shell,
    server: RedisServer,
    start_workers: StartWorkers,
    new_batch: NewBatch,
    tmp_path: Path,
    seconds: float,
) -> None:
    workers = start_workers()
    before = pids(workers)
    with waiting(new_batch(100, seconds=0.2), tmp_path) as producer:
        producer.batch.wait_for_records(20)
        server.signal(signal.SIGSTOP)
        start = time.monotonic()
        (expect_each_refused if seconds else expect_refused)(shell, producer.batch, "does not answer")
        producer.wait_until_it_says("does not answer. Waiting for it.")
        time.sleep(max(0.0, seconds - (time.monotonic() - start)))  # the time itself is the fault
        server.signal(signal.SIGCONT)
        producer.finish()
    assert producer.batch.runs_twice() == 0
    assert pids(workers) == before


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_redis_is_unavailable_for_a_minute_under_load(
    shell: Shell, server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    workers = start_workers()
    before = pids(workers)
    with waiting(new_batch(400, seconds=0.2), tmp_path) as producer:
        producer.batch.wait_for_records(20)
        server.kill()
        start = time.monotonic()
        expect_each_refused(shell, producer.batch, "cannot be reached")
        time.sleep(max(0.0, 60 - (time.monotonic() - start)))  # the time itself is the fault
        server.start()
        start = time.monotonic()
        producer.batch.wait_for_records(100)  # more than was running
        assert time.monotonic() - start < 30  # ten on a quiet machine
        producer.finish()
    assert producer.batch.runs_twice() == 0
    assert pids(workers) == before


@pytest.mark.parametrize(("kill", "pause"), [(kill_all, 0.5), pytest.param(kill_one, 0.05, marks=pytest.mark.faults)])
def test_connections_are_killed_over_and_over(
    server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path, kill: Kill, pause: float
) -> None:
    workers = start_workers()
    before = pids(workers)
    with waiting(new_batch(200, seconds=0.1), tmp_path) as producer:
        with repeated(kill, server, pause):
            producer.batch.wait_for_records(100)
        producer.finish()
    assert producer.batch.runs_twice() == 0
    assert pids(workers) == before


def test_results_that_are_being_read_while_redis_dies_are_read_to_the_end(
    server: RedisServer, new_batch: NewBatch
) -> None:
    batch, said = new_batch(30).submit(), []

    def notify(text: str) -> None:
        said.append(text)
        server.start()

    connection = QueueConnection(Settings(broker_url=server.url), notify=notify)
    rows = JobHandle(connection, batch.job).rows()
    ids = [next(rows).id]
    server.kill()
    ids += [row.id for row in rows]
    assert ids == list(range(30))
    assert len(said) == 1 and "cannot be reached" in said[0]


def test_a_job_that_is_accepted_stays_so_if_its_tickets_cannot_be_sent(
    server: RedisServer, new_batch: NewBatch
) -> None:
    batch = new_batch(10).submit()
    spec, client = batch.job.spec, QueueConnection(Settings(broker_url=server.url))
    server.kill()
    client.send_tickets(spec)
    server.start()
    assert batch.job.status == "queued"


class Forgetful(redis.Redis):
    """A client whose Redis is as good as started again whenever it has been sent a script, some times."""

    times = 3

    def script_load(self, script: str) -> str:
        digest = super().script_load(script)
        self.times -= 1
        if self.times >= 0:
            self.script_flush()
        return digest


def test_redis_may_restart_between_loading_a_script_and_its_call(server: RedisServer, new_batch: NewBatch) -> None:
    batch = new_batch(10).accept()
    server.client.script_flush()
    assert Ledger(Forgetful(port=server.port), 3).cancel(batch.id) == "cancelled"
    assert batch.job.status == "cancelled"
