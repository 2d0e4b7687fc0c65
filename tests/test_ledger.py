"""The ledger's scripts on a real Redis: leases, commits, rounds, ends."""

import threading
import time

import pytest

from common import keys
from common.errors import UnknownJob, UsageError
from common.keys import JobKeys
from common.ledger import Lease, Ledger
from common.payloads import encode_records
from common.store import Store
from common.values import Counts, Failure, JobSpec, JobStatus, Record, new_job_id
from tests.processes import RedisServer, wait_until

LEASE = 0.4


@pytest.fixture
def store(server: RedisServer) -> Store:
    return Store(server.client, result_ttl=100)


@pytest.fixture
def ledger(server: RedisServer) -> Ledger:
    return Ledger(server.client, LEASE)


def make_job(store: Store, ledger: Ledger, chunks: int = 3) -> str:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "echo", created_at=time.time()))
    for number in range(chunks):
        store.add_chunk(job_id, number, encode_records([Record(number, f"text {number}")]))
    ledger.seal(job_id, chunks, chunks)
    return job_id


def lease(ledger: Ledger, job_id: str, worker: str = "w") -> Lease | None:
    tickets = ledger.tickets(job_id) or set(ledger.issue(job_id, 6))
    return ledger.lease(job_id, min(tickets, default="none"), worker, 6)


def commit(ledger: Ledger, held: Lease, failed: int = 0) -> str:
    return ledger.commit(held, Counts(1 - failed, failed), {})


def run_all(ledger: Ledger, job_id: str, failed: tuple[int, ...] = ()) -> list[int]:
    done = []
    while held := lease(ledger, job_id):
        assert commit(ledger, held, int(held.chunk in failed)) == "committed"
        done.append(held.chunk)
    return done


def test_a_job_goes_from_submitting_to_completed(store: Store, ledger: Ledger) -> None:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "echo"))
    assert store.job(job_id).status is JobStatus.SUBMITTING
    store.add_chunk(job_id, 0, b"x")
    ledger.seal(job_id, 1, 1)
    assert store.job(job_id).status is JobStatus.QUEUED
    held = lease(ledger, job_id)
    assert held
    assert store.job(job_id).status is JobStatus.RUNNING
    assert commit(ledger, held) == "committed"
    job = store.job(job_id)
    assert job.status is JobStatus.COMPLETED
    assert job.counts == Counts(1, 0, 0)
    assert job_id not in store.active()


def test_nothing_of_a_job_is_leased_before_it_is_sealed(store: Store, ledger: Ledger) -> None:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "echo"))
    store.add_chunk(job_id, 0, b"x")
    assert ledger.issue(job_id, 6) == []
    assert ledger.lease(job_id, "any ticket", "w", 6) is None


def test_chunks_are_leased_in_order_and_once(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 20)
    found: list[int] = []

    def work(name: str) -> None:
        while held := lease(ledger, job_id, name):
            found.append(held.chunk)
            commit(ledger, held)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Several threads may show the same ticket; the loser gets nothing and the last one finishes.
    found += run_all(ledger, job_id)
    assert sorted(found) == list(range(20))
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_a_ticket_is_good_for_one_turn(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    ticket = ledger.issue(job_id, 1)[0]
    assert ledger.lease(job_id, ticket, "w", 1)
    assert ledger.lease(job_id, ticket, "w", 1) is None


def test_a_ticket_that_is_not_on_the_list_is_void(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    assert ledger.lease(job_id, "forged", "w", 6) is None


def test_a_lease_brings_the_next_ticket_while_chunks_are_open(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 2)
    first = ledger.issue(job_id, 1)
    assert len(first) == 1
    held = ledger.lease(job_id, first[0], "w", 1)
    assert held and held.next_ticket
    last = ledger.lease(job_id, held.next_ticket, "w", 1)
    assert last and last.next_ticket is None


def test_a_second_commit_of_a_chunk_changes_nothing(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = lease(ledger, job_id)
    assert held
    assert commit(ledger, held) == "committed"
    assert commit(ledger, held) == "double"
    assert store.job(job_id).counts.done == 1


def test_a_lost_lease_is_opened_again_and_the_late_commit_is_a_double(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    late = lease(ledger, job_id, "frozen")
    assert late
    opened = wait_until(lambda: ledger.reap(job_id, 100), 5)
    assert opened == [0]
    assert ledger.renew(late) == "running", "nobody took it: its holder may go on"
    wait_until(lambda: ledger.reap(job_id, 100), 5)
    again = lease(ledger, job_id, "other")
    assert again and again.attempt == 2
    assert ledger.renew(late) == "lost"
    assert commit(ledger, again) == "committed"
    assert commit(ledger, late) == "closed"
    assert store.job(job_id).counts.done == 1


def test_a_renewed_lease_stays(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = lease(ledger, job_id)
    assert held
    end = time.monotonic() + 3 * LEASE
    while time.monotonic() < end:
        assert ledger.renew(held) == "running"
        assert ledger.reap(job_id, 100) == []


def test_a_chunk_given_back_comes_first_and_does_not_count_as_an_attempt(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = lease(ledger, job_id)
    assert held
    ledger.give_back(held)
    again = lease(ledger, job_id)
    assert again and (again.chunk, again.attempt) == (held.chunk, 1)
    ledger.give_back(again, tried=True)
    third = lease(ledger, job_id)
    assert third and third.attempt == 2


def test_cancel_takes_effect_at_once_while_nothing_is_leased(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    assert ledger.cancel(job_id) == "cancelled"
    assert lease(ledger, job_id) is None


def test_cancel_waits_for_the_chunks_in_hand(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = lease(ledger, job_id)
    assert held
    assert ledger.cancel(job_id) == "cancelling"
    assert ledger.renew(held) == "cancelling"
    ledger.give_back(held)
    assert store.job(job_id).status is JobStatus.CANCELLED


def test_a_cancelled_job_whose_holder_died_ends_too(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    assert lease(ledger, job_id)
    ledger.cancel(job_id)
    wait_until(lambda: ledger.reap(job_id, 100) or store.job(job_id).status.finished, 5)
    assert store.job(job_id).status is JobStatus.CANCELLED


def test_a_failed_job_keeps_its_reason_and_what_is_done(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = lease(ledger, job_id)
    assert held
    commit(ledger, held)
    assert ledger.fail(job_id, Failure("model_not_found", "There is no such model."))
    assert not ledger.fail(job_id, Failure("other", "too late"))
    job = store.job(job_id)
    assert (job.status, job.counts.done) == (JobStatus.FAILED, 1)
    assert job.failure == Failure("model_not_found", "There is no such model.")


def test_a_job_with_more_failures_than_it_may_have_ends_early(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    for failed in (1, 1):
        held = lease(ledger, job_id)
        assert held
        assert ledger.commit(held, Counts(0, failed), {}, most_failed=1) == "committed"
    job = store.job(job_id)
    assert (job.status, job.counts.done) == (JobStatus.FAILED, 2)
    assert job.failure and job.failure.code == "too_many_errors"
    assert ledger.retry(job_id) == 3, "the two that failed and the one that never ran"


def test_a_limit_holds_for_the_last_chunk_too(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = lease(ledger, job_id)
    assert held
    ledger.commit(held, Counts(0, 1), {}, most_failed=0)
    assert store.job(job_id).status is JobStatus.FAILED


def test_records_that_ran_alone_are_noted_for_one_round(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = lease(ledger, job_id)
    assert held and ledger.alone(held) == []
    ledger.note_alone(held, [7, 7])
    assert ledger.alone(held) == [7, 7]
    commit(ledger, held, failed=1)
    ledger.retry(job_id)
    again = lease(ledger, job_id)
    assert again and ledger.alone(again) == []


@pytest.mark.parametrize(("limit", "allowed"), [("0", 0), ("7", 7), ("5%", 10), ("0.5%", 1), (None, None)])
def test_errors_are_limited_by_number_or_by_share(limit: str | None, allowed: int | None) -> None:
    spec = JobSpec(new_job_id(), "echo", max_errors=limit)
    assert JobSpec.decode(spec.encode()).most_failed(200) == allowed


def test_retry_opens_only_chunks_with_failures_in_a_new_round(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 5)
    run_all(ledger, job_id, failed=(1, 3))
    assert store.job(job_id).counts == Counts(3, 2)
    assert ledger.retry(job_id) == 2
    job = store.job(job_id)
    assert (job.status, job.round, job.counts.failed) == (JobStatus.QUEUED, 1, 0)
    assert sorted(run_all(ledger, job_id)) == [1, 3]
    assert store.job(job_id).counts == Counts(5, 0)
    assert store.layers(job_id, 1) == [(0, 1), (1, 1)]
    assert ledger.retry(job_id) == 0


def test_retry_of_a_cancelled_job_runs_what_never_ended(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 4)
    held = lease(ledger, job_id)
    assert held
    commit(ledger, held)
    ledger.cancel(job_id)
    assert ledger.retry(job_id) == 3
    assert sorted(run_all(ledger, job_id)) == [1, 2, 3]


def test_a_chunk_given_back_after_its_job_ended_is_not_lost_to_a_retry(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = lease(ledger, job_id)
    assert held
    ledger.fail(job_id, Failure("x", "y"))
    ledger.give_back(held)
    assert ledger.retry(job_id) == 3
    assert sorted(run_all(ledger, job_id)) == [0, 1, 2]
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_a_commit_of_an_earlier_round_is_stale(store: Store, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 2)
    late = lease(ledger, job_id)
    assert late
    ledger.fail(job_id, Failure("x", "y"))
    ledger.retry(job_id)
    assert commit(ledger, late) == "stale"


def test_retry_refuses_a_job_that_runs_or_was_never_accepted(store: Store, ledger: Ledger) -> None:
    with pytest.raises(UnknownJob):
        ledger.retry("000000000000")
    job_id = make_job(store, ledger)
    with pytest.raises(UsageError, match="is queued"):
        ledger.retry(job_id)


def test_a_job_whose_producer_fell_silent_is_given_up(store: Store, ledger: Ledger) -> None:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "echo"))
    store.add_chunk(job_id, 0, b"payload")
    assert ledger.reap(job_id, 100) == []
    wait_until(lambda: ledger.reap(job_id, 0.1) == [-1], 5)
    job = store.job(job_id)
    assert job.status is JobStatus.FAILED
    assert job.failure and job.failure.code == "producer_died"
    assert store.records(job_id, 0) is None
    with pytest.raises(UsageError, match="never accepted"):
        ledger.retry(job_id)


def test_every_key_of_a_finished_job_has_a_time_to_live(store: Store, ledger: Ledger, server: RedisServer) -> None:
    ends = [make_job(store, ledger) for _ in range(3)]
    run_all(ledger, ends[0], failed=(1,))
    ledger.cancel(ends[1])
    lease(ledger, ends[2])
    ledger.fail(ends[2], Failure("x", "y"))
    for job_id in ends:
        for key in server.client.scan_iter(f"{JobKeys.of(job_id).job}*"):
            assert server.client.pttl(key) > 0, key
    assert server.client.scard(keys.ACTIVE) == 0


def test_a_retried_job_lives_as_long_as_it_runs(store: Store, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger)
    run_all(ledger, job_id, failed=(0,))
    ledger.retry(job_id)
    for key in server.client.scan_iter(f"{JobKeys.of(job_id).job}*"):
        assert server.client.pttl(key) == -1, key


def test_forgotten_jobs_leave_the_list(store: Store, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger)
    server.client.delete(JobKeys.of(job_id).job)
    assert list(store.each_job()) == []
    assert server.client.zcard(keys.JOBS) == 0
