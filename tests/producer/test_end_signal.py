"""Waiting for the end of a job: told at once, and never missed where nobody tells."""

import threading
import time
from collections.abc import Callable

import pytest
import redis

from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from producer.end_signal import EndSignal
from tests.support.ledger_jobs import commit, leased, make_job
from tests.support.processes import RedisServer

LONG = 60.0


def cancelled(store: JobStore, ledger: Ledger, job: str) -> None:
    ledger.cancel(job)


def completed(store: JobStore, ledger: Ledger, job: str) -> None:
    assert commit(ledger, leased(ledger, job)) == "committed"


def deleted_after(store: JobStore, ledger: Ledger, job: str) -> None:
    ledger.cancel(job)
    store.delete(job)


@pytest.mark.parametrize("end", [cancelled, completed, deleted_after])
def test_the_end_of_a_job_wakes_those_who_wait_for_it(
    store: JobStore, ledger: Ledger, server: RedisServer, end: Callable[[JobStore, Ledger, str], None]
) -> None:
    job, other = make_job(store, ledger, 1), make_job(store, ledger, 1)
    with EndSignal(server.client, job) as signal:
        signal.wait(LONG)  # subscribes
        ledger.cancel(other)
        begun = time.monotonic()
        signal.wait(0.3)
        assert time.monotonic() - begun >= 0.3, "another job's end wakes nobody"
        waiter = threading.Thread(target=signal.wait, args=(LONG,))
        waiter.start()
        end(store, ledger, job)
        waiter.join(LONG / 2)
        assert not waiter.is_alive()
    assert server.client.pubsub_channels() == []


def test_a_user_who_may_not_subscribe_and_a_lost_redis_only_wait(
    store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job = make_job(store, ledger, 1)
    server.client.execute_command("ACL", "SETUSER", "deaf", "on", ">x", "~*", "+@all", "resetchannels")
    deaf = redis.Redis(port=server.port, username="deaf", password="x")
    with EndSignal(deaf, job) as refused, EndSignal(server.client, job) as lost:
        for signal in (refused, lost):
            signal.wait(LONG)  # subscribes
        assert all(waited(signal) for signal in (refused, refused))
        server.kill()
        assert all(waited(signal) for signal in (refused, lost, lost))


def waited(signal: EndSignal) -> bool:
    begun = time.monotonic()
    signal.wait(0.2)
    return time.monotonic() - begun >= 0.2
