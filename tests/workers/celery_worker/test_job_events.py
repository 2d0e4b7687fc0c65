"""Events about jobs, received as Flower receives them: which are sent, how often, and what they cost."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.events.state import State

from common.broker.app import make_app
from common.jobs import new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.redis import keys
from common.redis.keys import JobKeys
from common.settings import Settings
from tests.support.ledger_jobs import commit, leased, make_job, run_all
from tests.support.processes import RedisServer, wait_until
from workers.celery_worker import job_events
from workers.celery_worker.job_events import HOME, JobEvents


class Receiver:
    """What Flower makes of the events."""

    def __init__(self) -> None:
        self.state = State()
        self.types: list[str] = []

    def on_event(self, event: dict[str, Any]) -> None:
        self.state.event(event)
        self.types.append(event["type"])

    def row(self, job_id: str) -> tuple[str, str]:
        task = self.state.tasks[job_id]
        return task.state, task.result


@pytest.fixture
def sender(server: RedisServer, store: JobStore) -> Iterator[Callable[[], JobEvents]]:
    """Make senders on `server` that send when they are told to."""
    app = make_app(Settings(broker_url=server.url))
    yield lambda: JobEvents("w", app, store)
    app.close()


@pytest.fixture
def receiver(server: RedisServer) -> Iterator[Receiver]:
    made, app = Receiver(), make_app(Settings(broker_url=server.url))
    with app.connection_for_read() as connection:
        events = app.events.Receiver(connection, handlers={"*": made.on_event})
        thread = threading.Thread(target=events.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        thread.start()
        wait_until(lambda: server.client.pubsub_numpat() or server.client.pubsub_channels(), 10, "it listens")
        yield made
        events.should_stop = True
        thread.join()
    app.close()


def sent(sender: JobEvents, receiver: Receiver) -> list[str]:
    """Let a sender send; return the types of the events about jobs, once all of them have come."""
    before = receiver.types.count("worker-heartbeat")
    first = len(receiver.types)
    sender.send()
    with sender._dispatcher() as dispatcher:
        dispatcher.send("worker-heartbeat", freq=60)  # it comes after all others
    wait_until(lambda: receiver.types.count("worker-heartbeat") == before + 2, 10, "the events have come")
    return [name for name in receiver.types[first:] if name != "worker-heartbeat"]


def calls(store: JobStore, command: str) -> int:
    """Return how often Redis ran a command."""
    return store.client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_only_jobs_that_changed_are_sent(
    store: JobStore, ledger: Ledger, sender: Callable[[], JobEvents], receiver: Receiver
) -> None:
    waits, runs = make_job(store, ledger, 1), make_job(store, ledger, 3)
    events = sender()
    assert sorted(sent(events, receiver)) == ["task-queued", "task-queued", "task-received", "task-received"]
    assert sent(events, receiver) == []
    commit(ledger, leased(ledger, runs), failed=1)
    assert sent(events, receiver) == ["task-started", "task-progress"]
    assert receiver.row(waits) == ("QUEUED", "0 % · 0 of 1")
    state, text = receiver.row(runs)
    assert state == "PROGRESS" and text.startswith("33 % · 1 of 3 · ") and text.endswith(" · 1 failed")
    run_all(ledger, runs)
    assert sent(events, receiver) == ["task-succeeded"]
    assert sent(events, receiver) == []
    assert store.shown(0, 100) == (0, [waits])
    assert receiver.state.workers[HOME].alive


def test_a_job_that_waits_for_others_is_blocked_and_then_runs_or_is_revoked(
    store: JobStore, ledger: Ledger, sender: Callable[[], JobEvents], receiver: Receiver
) -> None:
    first = make_job(store, ledger, 1)
    second = make_job(store, ledger, 1, after=(first,))
    third = make_job(store, ledger, 1, after=(second,))
    events = sender()
    assert sorted(sent(events, receiver))[:2] == ["task-blocked", "task-blocked"]
    assert receiver.row(second) == ("BLOCKED", f"waits for job {first}")
    run_all(ledger, first)
    sent(events, receiver)
    assert receiver.row(second) == ("QUEUED", "0 % · 0 of 1")
    ledger.cancel(second)
    sent(events, receiver)
    state, text = receiver.row(third)
    assert state == "REVOKED" and text.startswith(f"cancelled: job {second} was cancelled")


def test_what_does_not_change_is_sent_again_for_a_flower_that_came_later(
    store: JobStore,
    ledger: Ledger,
    sender: Callable[[], JobEvents],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id, events = make_job(store, ledger, 2), sender()
    leased(ledger, job_id)
    sent(events, receiver)
    receiver.state.clear(ready=False)
    assert job_events._AGAIN_SECONDS + job_events.INTERVAL_SECONDS < 10
    monkeypatch.setattr(job_events, "_AGAIN_SECONDS", 0.0)
    assert sent(events, receiver) == ["task-progress"]
    task = receiver.state.tasks[job_id]
    assert (task.state, task.name) == ("PROGRESS", "hugqueue.job")
    assert task.received and task.started and task.args.startswith(f"job {job_id}")


def test_a_job_that_ended_and_is_retried_runs_again_in_its_row(
    store: JobStore, ledger: Ledger, sender: Callable[[], JobEvents], receiver: Receiver
) -> None:
    job_id, events = make_job(store, ledger, 2), sender()
    run_all(ledger, job_id, failed=(1,))
    sent(events, receiver)
    assert receiver.row(job_id)[0] == "SUCCESS", "it was too quick to be seen before its end"
    ledger.retry(job_id)
    sent(events, receiver)
    assert receiver.row(job_id) == ("QUEUED", "100 % · 2 of 2 · 1 failed")
    run_all(ledger, job_id)
    sent(events, receiver)
    state, text = receiver.row(job_id)
    assert state == "SUCCESS" and text.startswith("2 of 2 succeeded · in ")
    assert receiver.state.tasks[job_id].retries == 1


def test_the_end_is_told_by_another_sender_if_the_first_is_gone(
    store: JobStore, ledger: Ledger, sender: Callable[[], JobEvents], receiver: Receiver
) -> None:
    job_id = make_job(store, ledger, 1)
    leased(ledger, job_id)
    sent(sender(), receiver)
    assert receiver.row(job_id)[0] == "PROGRESS"
    ledger.cancel(job_id)
    ledger.client.delete(JobKeys.of(job_id).lease(0))
    ledger.reap_jobs([job_id])
    sent(sender(), receiver)
    state, text = receiver.row(job_id)
    assert state == "REVOKED" and text.startswith("cancelled · 0 of 1 done")


def test_a_deleted_job_is_revoked_and_what_is_no_job_is_dropped(
    store: JobStore, ledger: Ledger, sender: Callable[[], JobEvents], receiver: Receiver
) -> None:
    kept, job_id, events = make_job(store, ledger, 1), make_job(store, ledger, 1), sender()
    sent(events, receiver)
    store.delete(job_id)
    store.client.sadd(keys.SHOWN, "no job", new_job_id())
    broken = new_job_id()
    store.client.sadd(keys.SHOWN, broken)
    store.client.set(JobKeys.of(broken).job, "not a hash")
    assert sent(events, receiver) == ["task-retried", "task-revoked"]
    assert receiver.row(job_id) == ("REVOKED", "deleted")
    assert sorted(store.shown(0, 100)[1]) == sorted([kept, broken])
    store.delete(kept)
    assert not store.client.exists(keys.SHOWN), "the last job takes the set with it"


def test_a_thousand_jobs_are_a_few_messages(
    server: RedisServer, store: JobStore, ledger: Ledger, sender: Callable[[], JobEvents], receiver: Receiver
) -> None:
    jobs = [make_job(store, ledger, 1) for _ in range(1000)]
    for job_id in jobs:
        leased(ledger, job_id)
    events = sender()
    while len(receiver.state.tasks) < len(jobs):  # a page of them at a time
        assert len(sent(events, receiver)) <= 3 * 2 * job_events._PAGE
    server.client.config_resetstat()
    sent(events, receiver)
    assert calls(store, "publish") <= len(jobs) / job_events._BATCH + 3
    assert calls(store, "hgetall") <= job_events._MAX_RUNNING + 2 * job_events._PAGE


def test_only_the_worker_whose_reaper_holds_the_lock_sends(
    store: JobStore,
    ledger: Ledger,
    sender: Callable[[], JobEvents],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_events, "INTERVAL_SECONDS", 0.02)
    job_id, events = make_job(store, ledger, 1), sender()
    store.client.set(keys.REAPER, "another")
    events.start()
    try:
        store.client.config_resetstat()
        wait_until(lambda: calls(store, "get") > 3, 10, "it asks who holds the lock")
        assert receiver.types == []
        store.client.set(keys.REAPER, "w")
        wait_until(lambda: job_id in receiver.state.tasks, 10, "it sends")
    finally:
        events.stop()
