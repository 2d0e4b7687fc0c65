"""Processes that stand still for a while, and clocks that are wrong."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.broker.tickets import send_tickets
from common.queue.heartbeats import live_workers
from common.redis import keys
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import PLUGINS, RedisServer, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the test runners, as where jobs are submitted."""
    monkeypatch.syspath_prepend(str(PLUGINS))


def freeze(workers: Workers) -> list[psutil.Process]:
    processes = workers.processes()
    for process in processes:
        process.suspend()
    return processes


def test_a_ticket_popped_by_a_worker_that_never_gets_it_is_not_lost(
    start_workers: StartWorkers, new_batch: NewBatch, server: RedisServer
) -> None:
    frozen = start_workers()
    batch = send_into_the_void(frozen, new_batch, server)
    frozen.kill()
    assert batch.job.status == "queued" and batch.ledger.tickets(batch.id)
    start_workers(ready=False)
    batch.finish()


def send_into_the_void(frozen: Workers, new_batch: NewBatch, server: RedisServer) -> Batch:
    """Freeze a worker that waits for a ticket, and return a job whose one ticket went down its socket."""
    for _ in range(20):
        wait_until(lambda: any("b" in client["flags"] for client in server.client.client_list()), LONG, "it waits")
        frozen.celery().suspend()
        batch = new_batch(10).accept()
        send_tickets(server.client, batch.job.spec, batch.ledger.issue_tickets(batch.id, 1))
        if not server.client.llen(f"{keys.CELERY_PREFIX}any\x06\x163"):
            return batch
        frozen.celery().resume()  # Redis holds a pop for a second, and that was over
        batch.finish()
    raise AssertionError("the ticket was never popped")


def test_a_worker_frozen_past_its_lease_changes_nothing_when_it_wakes(
    start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    frozen = start_workers()
    batch = new_batch(30, until=go).submit()
    wait_until(lambda: batch.leased() == 3, LONG, "all chunks are at work")
    sleepers = freeze(frozen)
    go.touch()
    start_workers(ready=False)
    batch.finish()
    before = batch.commits(), batch.job.counts, batch.store.client.hkeys(f"hugqueue:job:{batch.id}:output")
    for process in sleepers:
        process.resume()
    after = new_batch(200, seconds=0.05).submit()
    after.finish()
    wait_until(lambda: "released: " in frozen.text() or "dropped" in frozen.text(), LONG, "it notices")
    assert (batch.commits(), batch.job.counts) == before[:2]
    assert batch.store.client.hkeys(f"hugqueue:job:{batch.id}:output") == before[2]


def test_a_chunk_that_takes_many_times_its_lease_runs_once(start_workers: StartWorkers, new_batch: NewBatch) -> None:
    start_workers(HUGQUEUE_LEASE="1")
    batch = new_batch(10, seconds=6).submit()
    wait_until(batch.leased, LONG, "it is at work")
    # What kombu would give to another worker once its visibility timeout is over is not even kept.
    assert not batch.store.client.keys(f"{keys.CELERY_PREFIX}unacked*")
    batch.finish()
    assert set(batch.runs().values()) == {1}


def test_the_same_message_delivered_three_times_at_once_gives_one_outcome(
    start_workers: StartWorkers, new_batch: NewBatch, server: RedisServer
) -> None:
    batch = new_batch(10, seconds=1).accept()
    send_tickets(server.client, batch.job.spec, batch.ledger.issue_tickets(batch.id, 1))
    [queue] = [key for key in server.client.keys(f"{keys.CELERY_PREFIX}any*") if server.client.type(key) == b"list"]
    [message] = server.client.lrange(queue, 0, -1)
    server.client.lpush(queue, message, message)
    workers = start_workers(ready=False)
    batch.finish()
    assert set(batch.runs().values()) == {1}
    wait_until(lambda: workers.text().count("void: ") >= 2, LONG, "two of the three are void")


@pytest.mark.parametrize("offset", ["+1h", pytest.param("-1h", marks=pytest.mark.faults)])
def test_a_worker_whose_clock_is_off_by_an_hour_runs_nothing_twice(
    start_workers: StartWorkers,
    new_batch: NewBatch,
    server: RedisServer,
    tmp_path: Path,
    environ: dict[str, str],
    offset: str,
) -> None:
    wrong = start_workers(**wrong_clock(environ, tmp_path, offset))
    [beat] = live_workers(server.client)
    assert abs(beat.started_at - time.time()) > 3000
    start_workers(ready=False)
    batch = new_batch(200, seconds=0.2).submit()
    batch.finish()
    assert abs((batch.job.finished_at or 0) - time.time()) < 60, "times are those of Redis's clock"
    assert batch.runs_twice() == 0
    assert "succeeded in" in wrong.text()


def wrong_clock(environ: dict[str, str], directory: Path, offset: str) -> dict[str, str]:
    """Return what gives a worker another time of day; its monotonic clock goes on as it should."""
    found = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("Debian's faketime is not installed (apt-get install faketime)")
    # Version 0.9.10 does not know the call that Python's own sleep makes since 3.11, and fails it.
    (directory / "sitecustomize.py").write_text(
        "import threading, time\ntime.sleep = lambda seconds: threading.Event().wait(seconds) and None\n"
    )
    path = f"{directory}{os.pathsep}{environ['PYTHONPATH']}"
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": path}


def test_a_frozen_device_process_is_detected_and_replaced(start_workers: StartWorkers, new_batch: NewBatch) -> None:
    workers = start_workers(HUGQUEUE_BATCH_TIMEOUT="3")
    batch = new_batch(60, seconds=0.2).submit()
    batch.wait_for_records(10)
    workers.device().send_signal(signal.SIGSTOP)
    batch.wait_for_more()
    wait_until(lambda: batch.job.status.finished, LONG, "it ends")
    assert "no sign of life" in workers.text()
