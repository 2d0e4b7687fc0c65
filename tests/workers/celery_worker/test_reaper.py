"""The reaper: what it costs, what it finds, and what a clock that is set does to it."""

import time
from collections.abc import Callable

import pytest

from common.broker.tickets import send_tickets, waiting_tickets
from common.jobs import JobSpec, JobStatus, new_job_id
from common.queue.heartbeats import TTL, Heartbeat, live_workers, send_heartbeat
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Counts
from common.redis import keys
from common.redis.keys import JobKeys
from common.redis.locks import acquire_lock
from common.settings import Settings
from tests.conftest import LEASE
from tests.support.ledger_jobs import commit, leased, look, make_job, payloads, put, reap, run_all
from tests.support.processes import PLUGINS, RedisServer, wait_until
from workers.celery_worker import reaper as module
from workers.celery_worker.reaper import Reaper

HOUR = 3600.0
NewReaper = Callable[..., Reaper]


@pytest.fixture
def new_reaper(server: RedisServer, store: JobStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> NewReaper:
    """Make reapers on `server` whose passes a test calls for one by one."""
    monkeypatch.syspath_prepend(PLUGINS)

    def make(name: str = "r", **more: float) -> Reaper:
        settings = Settings(broker_url=server.url, **({"lease_seconds": LEASE, "producer_ttl": 0.3} | more))
        made = Reaper(name, store, ledger, settings)
        wait_until(made._leases_may_be_judged, 10)  # Redis was started just now
        return made

    return make


def waiting(server: RedisServer) -> set[str]:
    return set().union(*waiting_tickets(server.client))


def looks(server: RedisServer) -> int:
    """How many scripts Redis has run so far."""
    stats = server.client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


# A key of a running job is lost


def begun(store: JobStore, ledger: Ledger) -> str:
    """Return a job of six chunks: two done (one with failures), one running, one delayed, and two that are open."""
    job_id = make_job(store, ledger, 6)
    for failed in (0, 1):
        assert commit(ledger, leased(ledger, job_id), failed) == "committed"
    ledger.release_chunk(leased(ledger, job_id), delay=100)
    return job_id


@pytest.mark.parametrize("name", [name for name in JobKeys.__slots__ if name not in ("job", "input", "output")])
def test_a_job_that_loses_a_key_is_still_done(name: str, store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = begun(store, ledger)
    held = leased(ledger, job_id)
    server.client.delete(getattr(JobKeys.of(job_id), name))
    found = look(ledger, job_id)
    assert len(found.recovered) == {"open": 2, "commits": 2, "leased": 1, "delayed": 1}.get(name, 0)
    assert look(ledger, job_id).recovered == []
    assert ledger.renew(held) == "running"
    assert commit(ledger, held) == "committed"
    server.client.zadd(JobKeys.of(job_id).delayed, dict.fromkeys(("2",), 0), xx=True)  # its rest is over
    look(ledger, job_id)
    run_all(ledger, job_id)
    job = store.job(job_id)
    assert (job.status, job.counts.done, job.counts.failed) == (JobStatus.COMPLETED, 6, 1)


@pytest.mark.parametrize("name", ["open", "commits"])
def test_a_retried_job_that_loses_a_key_is_still_done(
    name: str, store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id = make_job(store, ledger, 5)
    run_all(ledger, job_id, failed=(1, 3))
    assert ledger.retry(job_id) == 2
    first = leased(ledger, job_id)
    assert commit(ledger, first) == "committed"
    server.client.delete(getattr(JobKeys.of(job_id), name))
    found = look(ledger, job_id)
    assert found.recovered == ([3] if name == "open" else [0, 1, 2, 4])
    assert run_all(ledger, job_id) == [3]
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_a_job_that_lost_its_open_chunks_after_its_end_is_run_by_a_retry(
    store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id = make_job(store, ledger, 3)
    assert commit(ledger, leased(ledger, job_id)) == "committed"
    assert ledger.cancel(job_id) == "cancelled"
    server.client.delete(JobKeys.of(job_id).open)
    assert ledger.retry(job_id) == 0
    assert look(ledger, job_id).recovered == [1, 2]
    assert run_all(ledger, job_id) == [1, 2]
    assert store.job(job_id).status is JobStatus.COMPLETED


@pytest.mark.parametrize("name", ["commits", "commit_history"])
def test_failures_of_a_finished_job_that_lost_a_key_are_run_again(
    name: str, store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id = make_job(store, ledger, 3)
    run_all(ledger, job_id, failed=(1,))
    server.client.delete(getattr(JobKeys.of(job_id), name))
    ledger.retry(job_id)
    look(ledger, job_id)
    assert run_all(ledger, job_id) == [1]
    job = store.job(job_id)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(3, 0))


def test_records_that_are_run_again_for_lost_commits_are_counted_once(
    store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "test-echo"))
    payloads(store, job_id).add_records(0, b"three records")
    ledger.accept(job_id, 1, 3)
    first = leased(ledger, job_id)
    put(ledger, first)
    ledger.commit(first, Counts(2, 1), {})
    assert ledger.retry(job_id) == 1
    server.client.delete(JobKeys.of(job_id).commit_history)
    second = leased(ledger, job_id)
    put(ledger, second)
    ledger.commit(second, Counts(3, 0), {})  # of earlier outcomes nothing was found
    assert store.job(job_id).counts == Counts(3, 0)


def test_a_forged_number_of_chunks_does_not_hold_redis_up(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger)
    server.client.hset(JobKeys.of(job_id).job, "chunks", 10**15)
    assert look(ledger, job_id).recovered == []


# Many jobs


def test_a_pass_costs_what_has_happened_however_many_jobs_wait(
    store: JobStore, ledger: Ledger, server: RedisServer, new_reaper: NewReaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PER_PASS", 20)
    monkeypatch.setattr(module, "PAGE_SIZE", 10)
    jobs = [make_job(store, ledger, 1) for _ in range(150)]
    reaper = new_reaper()
    reaper.reap()
    assert all(ledger.tickets(job_id) for job_id in jobs), "those that have just come are due"
    before = looks(server)
    reaper.reap()
    assert looks(server) - before <= 60, "a part of the round"
    held = leased(ledger, jobs[77])
    wait_until(lambda: not server.client.exists(JobKeys.of(jobs[77]).lease(0)), 5)
    before = looks(server)
    reaper.reap()
    assert server.client.lrange(JobKeys.of(jobs[77]).open, 0, -1) == [b"0"], "it is found at once"
    assert looks(server) - before <= 60
    assert ledger.renew(held) == "running"


def test_lost_tickets_are_found_by_rounds_of_several_passes(
    store: JobStore, ledger: Ledger, server: RedisServer, new_reaper: NewReaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PER_PASS", 20)
    monkeypatch.setattr(module, "PAGE_SIZE", 10)
    reaper = new_reaper()
    jobs = [make_job(store, ledger, 1) for _ in range(50)]
    reaper.reap()
    lost = set().union(*map(ledger.tickets, jobs))
    assert waiting(server) == lost
    server.client.delete("hugqueue:celery:any", "hugqueue:celery:any\x06\x163")

    def all_sent_again() -> bool:
        reaper.reap()
        found = set().union(*map(ledger.tickets, jobs))
        return len(found) == len(jobs) and found == waiting(server)

    wait_until(all_sent_again, 20)
    assert not lost & waiting(server)


def test_waiting_tickets_are_not_replaced(
    store: JobStore, ledger: Ledger, server: RedisServer, new_reaper: NewReaper
) -> None:
    reaper, job_id = new_reaper(), make_job(store, ledger, 3)
    send_tickets(server.client, store.job(job_id).spec, ledger.issue_tickets(job_id, 2))
    for _ in range(4):
        reaper.reap()
    assert len(waiting(server)) == 3
    assert ledger.tickets(job_id) == waiting(server)


def test_a_long_pass_keeps_the_reaper_lock_and_ends_when_it_is_lost(
    store: JobStore, ledger: Ledger, server: RedisServer, new_reaper: NewReaper
) -> None:
    reaper = new_reaper("first", reap_seconds=0.02)
    for _ in range(5):
        make_job(store, ledger, 1)
        reaper.reap()
        time.sleep(0.03)  # longer than a turn lasts that is not renewed
    wait_until(lambda: acquire_lock(server.client, keys.REAPER, "second", 400), 5)
    with pytest.raises(module._PassInterrupted):
        reaper.reap()


def test_a_forged_job_among_those_that_need_not_wait_does_not_stop_the_reaper(
    store: JobStore, ledger: Ledger, server: RedisServer, new_reaper: NewReaper
) -> None:
    reaper, forged, first = new_reaper(reap_seconds=1.0), new_job_id(), make_job(store, ledger, 1)
    second = make_job(store, ledger, 1, after=(first,))
    reaper.start()
    try:
        wait_until(lambda: reaper._is_leader, 10)
        server.client.hset(JobKeys.of(forged).job, "status", b"\xff")
        server.client.sadd(keys.UNBLOCKED, forged)
        wait_until(lambda: not server.client.exists(keys.UNBLOCKED), 10)
        assert run_all(ledger, first) == [0]
        wait_until(lambda: bool(ledger.tickets(second)), 10)
    finally:
        reaper.stop()


def test_forged_heartbeats_do_not_multiply_tickets(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    for number in range(40):
        send_heartbeat(server.client, heartbeat(f"w{number}", slots=1000))
    job_id = make_job(store, ledger, 3)
    assert module.target_tickets(live_workers(server.client), "any", 6, 500) == 500
    assert len(ledger.issue_tickets(job_id, 10**9)) == 3


def heartbeat(name: str, slots: int = 3) -> Heartbeat:
    return Heartbeat(name, "cpu", "a cpu", ("any",), slots, 1, "host", 0.0, state="ready")


# Redis's clock is set. Set forward, what has a time to live is gone, and what was seen was seen long ago; set back,
# what is to be gone in a moment is there for an hour, and what was seen will be seen in an hour.


def test_a_producer_is_silent_by_the_reapers_clock(store: JobStore, ledger: Ledger, new_reaper: NewReaper) -> None:
    reaper, job_id = new_reaper(), new_job_id()
    store.create(JobSpec(job_id, "echo"))
    for clock in (HOUR, -HOUR):
        store.set_field(job_id, "producer_seen", str(store.now() + clock))
        reaper.reap()
        assert store.job(job_id).status is JobStatus.SUBMITTING
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # it lives, and says so
        payloads(store, job_id).add_records(0, b"payload")
        reaper.reap()
        assert store.job(job_id).status is JobStatus.SUBMITTING
    wait_until(lambda: (reaper.reap(), store.job(job_id).status is JobStatus.FAILED)[1], 5)
    failure = store.job(job_id).failure
    assert failure and failure.code == "producer_died"


def test_a_reaper_lock_that_seems_to_last_an_hour_is_taken_over(server: RedisServer) -> None:
    assert acquire_lock(server.client, keys.REAPER, "dead", 10_000)
    assert not acquire_lock(server.client, keys.REAPER, "next", 10_000)
    server.client.pexpire(keys.REAPER, int(HOUR * 1000))
    assert acquire_lock(server.client, keys.REAPER, "next", 10_000)


def test_a_lease_that_seems_to_last_an_hour_ends_in_time(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger, 2)
    dead, alive = leased(ledger, job_id), leased(ledger, job_id)
    for held in (dead, alive):
        server.client.pexpire(JobKeys.of(job_id).lease(held.chunk), int(HOUR * 1000))
    assert reap(ledger, job_id) == []
    assert ledger.renew(alive) == "running"
    wait_until(lambda: ledger.renew(alive) == "running" and reap(ledger, job_id) == [dead.chunk], 5)


def test_a_rest_that_seems_to_last_an_hour_is_over(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger, 1)
    ledger.release_chunk(leased(ledger, job_id), delay=50)
    assert look(ledger, job_id).open == 0
    server.client.zincrby(JobKeys.of(job_id).delayed, HOUR, "0")
    assert look(ledger, job_id).open == 1


def test_a_dead_worker_does_not_seem_to_live_for_an_hour(server: RedisServer, new_reaper: NewReaper) -> None:
    send_heartbeat(server.client, heartbeat("dead"))
    server.client.pexpire(keys.worker("dead"), int(HOUR * 1000))
    new_reaper().reap()
    assert server.client.pttl(keys.worker("dead")) <= TTL * 1000
