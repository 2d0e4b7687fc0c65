"""The notifier on a real Redis, against a receiver that is down, slow, or answers with errors first."""

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from common.jobs import Job, JobSpec, new_job_id
from common.notifications import NotificationState
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Failure
from common.redis import keys
from common.redis.keys import JobKeys
from common.settings import Settings
from tests.support.ledger_jobs import run_all
from tests.support.processes import free_port, wait_until
from tests.support.webhook_receiver import SECRET, Receiver
from workers.notifications import notifier as module
from workers.notifications.notifier import Notifier, pause_after

SETTINGS = Settings(notify_allowed=("*",), notify_secrets=(SECRET,), notify_retry_seconds=0.1)
Start = Callable[..., Notifier]


@pytest.fixture
def start(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start notifiers with quick passes; all are stopped in the end."""
    for name, seconds in {"INTERVAL": 0.05, "_BUSY": 0.01, "_YIELD": 0.1, "_TURN": 0.2}.items():
        monkeypatch.setattr(module, f"{name}_SECONDS", seconds)
    started: list[Notifier] = []

    def start(name: str = "w", **changes: object) -> Notifier:
        made = Notifier(name, store, dataclasses.replace(SETTINGS, **changes))
        made.start()
        started.append(made)
        return made

    yield start
    for made in started:
        made.stop()


def submit(store: JobStore, ledger: Ledger, url: str | None) -> str:
    spec = JobSpec(new_job_id(), "test-echo", created_at=time.time(), notify=url)
    store.create(spec)
    ledger.accept(spec.id, 1, 1)
    return spec.id


def end(store: JobStore, ledger: Ledger, url: str | None) -> str:
    """Return a job that is completed."""
    job_id = submit(store, ledger, url)
    run_all(ledger, job_id)
    return job_id


def wait_for(store: JobStore, job_id: str, state: NotificationState) -> Job:
    def find() -> Job | None:
        job = store.job(job_id)
        return job if job.notification and job.notification.state is state else None

    return wait_until(find, 20, f"the notification is {state}: {store.job(job_id).notification}")


def test_a_receiver_that_is_down_and_then_answers_500_is_told_in_the_end(
    store: JobStore, ledger: Ledger, start: Start
) -> None:
    port = free_port()
    job_id = end(store, ledger, f"http://127.0.0.1:{port}/jobs")
    start()
    waiting = wait_until(lambda: (n := store.job(job_id).notification) and n.error and n, 20)
    assert "Connection refused" in waiting.error and waiting.state is NotificationState.PENDING
    with Receiver(500, 302, port=port) as receiver:
        job = wait_for(store, job_id, NotificationState.DELIVERED)
    assert job.notification and job.notification.attempts >= 4
    assert job.notification.next_attempt_at is None and not job.notification.error
    assert job.notification.last_attempt_at and job.finished_at
    assert [found.path for found in receiver.received] == ["/jobs"] * 3
    assert len({(found.headers["webhook-id"], found.body) for found in receiver.received}) == 1
    last = receiver.received[-1]
    assert Webhook(SECRET).verify(last.body.decode(), dict(last.headers))["type"] == "job.completed"
    assert not store.client.exists(keys.NOTIFICATIONS)


@pytest.mark.parametrize(("status", "asked"), [(429, True), (503, True), (500, False)])
def test_a_receiver_that_asks_for_a_pause_gets_it(
    store: JobStore, ledger: Ledger, start: Start, status: int, asked: bool
) -> None:
    with Receiver(status) as receiver:
        receiver.retry_after = "120"
        job_id = end(store, ledger, receiver.url)
        start()
        if asked:
            noted = wait_until(lambda: (n := store.job(job_id).notification) and n.error and n, 20)
            assert noted.last_attempt_at and noted.next_attempt_at
            assert 119 < noted.next_attempt_at - noted.last_attempt_at < 121
            assert "asks for a pause of 2m 00s" in noted.error
        else:
            wait_for(store, job_id, NotificationState.DELIVERED)


def test_a_silent_receiver_holds_up_no_other(store: JobStore, ledger: Ledger, start: Start) -> None:
    with Receiver() as silent, Receiver() as other:
        silent.go.clear()
        held = [end(store, ledger, silent.url) for _ in range(3 * module._MAX_PER_ORIGIN)]
        told = [end(store, ledger, other.url) for _ in range(6)]
        start()
        for job_id in told:
            wait_for(store, job_id, NotificationState.DELIVERED)
        assert len(silent.received) == module._MAX_PER_ORIGIN
        silent.go.set()
        for job_id in held:
            wait_for(store, job_id, NotificationState.DELIVERED)
    assert sorted(found.message["data"]["job"]["id"] for found in silent.received) == sorted(held)


def test_more_jobs_than_a_page_holds_do_not_hide_others(
    store: JobStore, ledger: Ledger, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 3)
    with Receiver() as silent, Receiver() as other:
        silent.go.clear()
        for _ in range(20):
            end(store, ledger, silent.url)
        last = end(store, ledger, other.url)
        start()
        wait_for(store, last, NotificationState.DELIVERED)


def test_a_request_that_ends_makes_room_for_the_next_at_once(
    store: JobStore, ledger: Ledger, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 3600)
    with Receiver() as receiver:
        told = [end(store, ledger, receiver.url) for _ in range(3 * module._MAX_PER_ORIGIN)]
        start()
        for job_id in told:
            wait_for(store, job_id, NotificationState.DELIVERED)


def test_a_receiver_that_is_down_holds_up_no_other_of_the_only_worker(
    store: JobStore, ledger: Ledger, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_YIELD_SECONDS", "_TURN_SECONDS"):
        monkeypatch.setattr(module, name, 3600)
    start()._yield_until = time.monotonic()  # it has just had the lock back
    down = end(store, ledger, f"http://127.0.0.1:{free_port()}/")
    wait_until(lambda: getattr(store.job(down).notification, "error", ""), 20)
    with Receiver() as receiver:
        wait_for(store, end(store, ledger, receiver.url), NotificationState.DELIVERED)


def test_a_worker_that_stops_sends_what_is_due_on_all_pages(
    store: JobStore, ledger: Ledger, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_PAGE": 3, "INTERVAL_SECONDS": 3600, "_BUSY_SECONDS": 3600}.items():
        monkeypatch.setattr(module, name, value)
    with Receiver() as receiver:
        told = [end(store, ledger, receiver.url) for _ in range(5)]
        stopping = start()
        stopping._offset = 6
        stopping.stop()
        for job_id in told:
            wait_for(store, job_id, NotificationState.DELIVERED)


def test_two_workers_send_one_request_for_each_end(store: JobStore, ledger: Ledger, start: Start) -> None:
    with Receiver() as receiver:
        start("first"), start("second")
        told = [end(store, ledger, receiver.url) for _ in range(20)]
        for job_id in told:
            wait_for(store, job_id, NotificationState.DELIVERED)
    assert sorted(found.message["data"]["job"]["id"] for found in receiver.received) == sorted(told)


def test_what_one_worker_may_not_send_another_one_sends(store: JobStore, ledger: Ledger, start: Start) -> None:
    with Receiver() as receiver:
        job_id = end(store, ledger, receiver.url)
        start("first", notify_allowed=())
        wait_until(lambda: "only https is allowed" in getattr(store.job(job_id).notification, "error", ""), 20)
        assert not receiver.received
        start("second", notify_allowed=(receiver.origin,))
        wait_for(store, job_id, NotificationState.DELIVERED)


def test_attempts_are_given_up_when_their_time_is_over_or_the_receiver_is_gone(
    store: JobStore, ledger: Ledger, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver(500, 500, 500) as failing, Receiver(410) as gone:
        late, ended = end(store, ledger, failing.url), end(store, ledger, gone.url)
        start(notify_give_up_seconds=0.25)
        job = wait_for(store, late, NotificationState.GIVEN_UP)
        assert job.notification and job.notification.error == "it answered 500 (Internal Server Error)"
        assert job.notification.next_attempt_at is None
        wait_for(store, ended, NotificationState.GIVEN_UP)
    assert len(gone.received) == 1 and 1 <= len(failing.received) <= 3
    assert not store.client.exists(keys.NOTIFICATIONS)
    assert (
        f"job {ended}: could not notify {gone.origin}/*** that it is completed, given up after attempt 1" in caplog.text
    )
    assert "swordfish" not in caplog.text


def test_each_end_is_told_and_a_retry_replaces_one_that_was_not(store: JobStore, ledger: Ledger, start: Start) -> None:
    with Receiver() as receiver:
        failed, cancelled, quiet = (submit(store, ledger, url) for url in (receiver.url, receiver.url, None))
        assert store.job(failed).notification is None
        ledger.fail(failed, Failure("test", "no more"))
        ledger.retry(failed)
        assert store.job(failed).notification is None and not store.client.exists(keys.NOTIFICATIONS)
        ledger.fail(failed, Failure("test", "again"))
        ledger.cancel(cancelled), ledger.cancel(quiet)
        start()
        wait_for(store, failed, NotificationState.DELIVERED)
        ledger.retry(failed)
        run_all(ledger, failed)
        wait_for(store, failed, NotificationState.DELIVERED)
        wait_for(store, cancelled, NotificationState.DELIVERED)
    told = [(found["type"], found["data"]["failure"]) for found in receiver.messages(failed)]
    assert told == [("job.failed", {"code": "test", "message": "again"}), ("job.completed", None)]
    assert [found["data"]["round"] for found in receiver.messages(failed)] == [1, 2]
    assert [found["type"] for found in receiver.messages(cancelled)] == ["job.cancelled"]
    assert len({found.headers["webhook-id"] for found in receiver.received}) == 3
    assert store.job(quiet).notification is None


def test_deleted_jobs_are_told_to_nobody_and_forged_ones_stop_nothing(
    store: JobStore, ledger: Ledger, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver() as receiver:
        deleted = end(store, ledger, receiver.url)
        store.delete(deleted)
        assert not store.client.exists(keys.NOTIFICATIONS)
        expired, broken, forged, wrong, endless = (end(store, ledger, receiver.url) for _ in range(5))
        store.client.hdel(JobKeys.of(endless).job, "finished_at")
        store.client.delete(JobKeys.of(expired).job)
        store.client.hset(JobKeys.of(broken).job, "status", "none of these")
        store.client.hset(JobKeys.of(forged).job, "spec", JobSpec(forged, "t", notify="ftp://[").encode())
        store.client.delete(JobKeys.of(wrong).job)
        store.client.set(JobKeys.of(wrong).job, "no hash")
        store.client.zadd(keys.NOTIFICATIONS, {"no job": 1, b"\xff\x00": 2})
        last = end(store, ledger, receiver.url)
        start()
        wait_for(store, last, NotificationState.DELIVERED)
        wait_for(store, forged, NotificationState.GIVEN_UP)
        wait_for(store, endless, NotificationState.DELIVERED)
    assert len(receiver.received) == 2
    assert not store.client.exists(keys.NOTIFICATIONS)
    assert "unexpected error" not in caplog.text


def test_an_attempt_whose_worker_died_is_made_again(store: JobStore, ledger: Ledger, start: Start) -> None:
    with Receiver() as receiver:
        job_id = end(store, ledger, receiver.url)
        queue = module.NotificationQueue(store.client)
        [attempt] = queue.claim([job_id], 0.3)
        assert attempt.number == 1 and queue.claim([job_id], 0.3) == []
        start()
        job = wait_for(store, job_id, NotificationState.DELIVERED)
        assert job.notification and job.notification.attempts == 2
        queue.note_failure(attempt, "too late", 0.1)
        assert store.job(job_id) == job


def test_an_attempt_of_an_earlier_end_says_nothing_of_a_later_one(store: JobStore, ledger: Ledger) -> None:
    queue = module.NotificationQueue(store.client)
    job_id = submit(store, ledger, "https://hooks.example.com/")
    attempts = []
    for _ in range(2):
        ledger.cancel(job_id)
        attempts += queue.claim([job_id], 60)
        ledger.retry(job_id)
    ledger.cancel(job_id)
    attempts += queue.claim([job_id], 60)
    assert [attempt.number for attempt in attempts] == [1, 1, 1]
    for attempt in attempts[:2]:
        queue.note_delivered(attempt)
    assert getattr(store.job(job_id).notification, "state", None) is NotificationState.PENDING
    queue.note_delivered(attempts[2])
    assert getattr(store.job(job_id).notification, "state", None) is NotificationState.DELIVERED


def test_an_unexpected_error_is_a_failed_attempt(
    store: JobStore, ledger: Ledger, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def fail(host: object, *arguments: Any, **more: Any) -> Any:
        if host == "hooks.test":
            raise ZeroDivisionError
        return resolve(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    job_id = end(store, ledger, "https://hooks.test/")
    start(notify_give_up_seconds=0.001)
    job = wait_for(store, job_id, NotificationState.GIVEN_UP)
    assert job.notification and job.notification.error == "unexpected ZeroDivisionError; the log of w has it"


def test_outcomes_are_noted_even_when_redis_is_full(store: JobStore, ledger: Ledger) -> None:
    queue = module.NotificationQueue(store.client)
    told, missed, waiting = (end(store, ledger, "https://hooks.example.com/") for _ in range(3))
    first, second = queue.claim([told, missed], 60)
    store.client.config_set("maxmemory", 1)
    try:
        assert queue.claim([waiting], 60) == []
        queue.note_delivered(first)
        queue.note_failure(second, "it answered 500", 60)
    finally:
        store.client.config_set("maxmemory", 0)
    wait_for(store, told, NotificationState.DELIVERED)
    assert getattr(store.job(missed).notification, "error", "") == "it answered 500"
    assert set(queue.due(time.time() + 100, 0, 9)) == {missed, waiting}


def test_pauses_grow_to_an_hour() -> None:
    assert all(5 <= pause_after(1, 5) <= 6.25 for _ in range(20))
    assert 40 <= pause_after(4, 5) <= 50
    assert all(3600 <= pause_after(attempt, 5) <= 4500 for attempt in (12, 30, 10**6))
