"""Rounds and ends of jobs in the ledger: what is run again, what is counted, and what stays behind."""

import pytest

from common.errors import NotSubmitting, UnknownJob, UsageError
from common.jobs import JobSpec, JobStatus, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Lease, Ledger
from common.records import Counts, Failure
from common.redis import keys
from common.redis.keys import JobKeys
from common.redis.scripts import Scripts
from tests.support.ledger_jobs import commit, die, lease, leased, look, make_job, payloads, reap, run_all
from tests.support.processes import RedisServer


def test_a_job_with_more_failures_than_it_may_have_ends_early(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    for failed in (1, 1):
        held = leased(ledger, job_id)
        assert ledger.commit(held, Counts(0, failed), {}, max_failed=1) == "committed"
    job = store.job(job_id)
    assert (job.status, job.counts.done) == (JobStatus.FAILED, 2)
    assert job.failure and job.failure.code == "too_many_errors"
    assert ledger.retry(job_id) == 3, "the two that failed and the one that never ran"


def test_a_job_whose_last_chunk_is_done_in_spite_of_a_cancel_is_completed(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    assert ledger.cancel(job_id) == "cancelling"
    commit(ledger, held)
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_a_limit_holds_for_the_last_chunk_too(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    ledger.commit(held, Counts(0, 1), {}, max_failed=0)
    assert store.job(job_id).status is JobStatus.FAILED


@pytest.mark.parametrize(("limit", "allowed"), [("0", 0), ("7", 7), ("5%", 10), ("0.5%", 1), (None, None)])
def test_errors_are_limited_by_number_or_by_share(limit: str | None, allowed: int | None) -> None:
    spec = JobSpec(new_job_id(), "echo", max_errors=limit)
    assert JobSpec.decode(spec.encode()).max_failed(200) == allowed


def test_retry_opens_only_chunks_with_failures_in_a_new_round(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 5)
    run_all(ledger, job_id, failed=(1, 3))
    assert store.job(job_id).counts == Counts(3, 2)
    assert ledger.retry(job_id) == 2
    job = store.job(job_id)
    assert (job.status, job.round) == (JobStatus.QUEUED, 1)
    assert job.counts == Counts(3, 2), "they have no new outcome yet"
    assert sorted(run_all(ledger, job_id)) == [1, 3]
    assert store.job(job_id).counts == Counts(5, 0)
    assert payloads(store, job_id).versions(1) == [(0, 1), (1, 1)]
    assert ledger.retry(job_id) == 0


def test_a_failed_record_counts_as_failed_until_it_has_another_outcome(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 4)
    run_all(ledger, job_id, failed=(0, 1, 2))
    ledger.retry(job_id)
    for failed, counts in ((0, Counts(2, 2)), (1, Counts(2, 2))):
        held = leased(ledger, job_id)
        assert commit(ledger, held, failed) == "committed"
        assert store.job(job_id).counts == counts
    ledger.cancel(job_id)
    assert store.job(job_id).counts == Counts(2, 2)
    assert ledger.retry(job_id) == 2, "the one that failed again and the one that was not run again"
    run_all(ledger, job_id)
    job = store.job(job_id)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(4, 0))


def test_a_limit_of_failures_begins_anew_with_each_round(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 3)
    run_all(ledger, job_id, failed=(0, 1, 2))
    ledger.retry(job_id)
    held = leased(ledger, job_id)
    assert ledger.commit(held, Counts(0, 1), {}, max_failed=1) == "committed"
    assert store.job(job_id).status is JobStatus.RUNNING
    held = leased(ledger, job_id)
    assert ledger.commit(held, Counts(0, 1), {}, max_failed=1) == "committed"
    failure = store.job(job_id).failure
    assert failure and failure.message.startswith("2 records failed")


def test_a_retry_that_is_sent_again_since_its_answer_was_lost_is_done_once(
    store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id = make_job(store, ledger, 3)
    run_all(ledger, job_id, failed=(0, 2))
    scripts = Scripts(server.client)
    assert scripts.run("reopen_failed", job_id, 0) == [b"0", b"0"]
    assert scripts.run("retry", job_id, "one", 0) == scripts.run("retry", job_id, "one", 0) == [b"completed", 2]
    assert scripts.run("retry", job_id, "another", 0) == [b"queued", -1]
    assert store.job(job_id).round == 1


def test_a_retry_that_met_another_one_halfway_begins_anew(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger, 3)
    run_all(ledger, job_id, failed=(0, 2))
    assert ledger.retry(job_id) == 2
    run_all(ledger, job_id, failed=(2,))
    assert Scripts(server.client).run("retry", job_id, "late", 0) == [b"completed", -2]
    assert ledger.retry(job_id) == 1


def test_a_retry_that_was_cut_off_before_its_round_changes_nothing(
    store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id = make_job(store, ledger, 3)
    run_all(ledger, job_id, failed=(0, 2))
    commit_history = JobKeys.of(job_id).commit_history
    before = store.job(job_id), server.client.hgetall(commit_history)
    Scripts(server.client).run("reopen_failed", job_id, 0)
    assert (store.job(job_id), server.client.hgetall(commit_history)) == before
    assert all(server.client.ttl(key) > 0 for key in server.client.keys(f"*{job_id}*")), "it ends with its job"
    assert ledger.retry(job_id) == 2
    assert sorted(run_all(ledger, job_id)) == [0, 2]
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_thousands_of_chunks_are_accepted_and_retried_once_in_order(
    store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id, chunks, of = new_job_id(), 5000, JobKeys.of
    store.create(JobSpec(job_id, "test-echo", created_at=1.0))
    ledger.accept(job_id, chunks, chunks)
    every = [str(chunk).encode() for chunk in range(chunks)]
    assert server.client.lrange(of(job_id).open, 0, -1) == every
    server.client.hset(of(job_id).commits, mapping=dict.fromkeys(every, "0:1:0:1:0"))
    server.client.hset(of(job_id).failed_counts, mapping=dict.fromkeys(every, 1))
    server.client.delete(of(job_id).open)
    assert ledger.fail(job_id, Failure("test", "ended"))
    assert ledger.retry(job_id) == chunks
    assert sorted(server.client.lrange(of(job_id).open, 0, -1), key=int) == every


def test_retry_of_a_cancelled_job_runs_what_never_ended(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 4)
    held = leased(ledger, job_id)
    commit(ledger, held)
    ledger.cancel(job_id)
    assert ledger.retry(job_id) == 3
    assert sorted(run_all(ledger, job_id)) == [1, 2, 3]


def test_a_chunk_released_after_its_job_ended_is_not_lost_to_a_retry(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = leased(ledger, job_id)
    ledger.fail(job_id, Failure("x", "y"))
    ledger.release_chunk(held)
    assert ledger.retry(job_id) == 3
    assert sorted(run_all(ledger, job_id)) == [0, 1, 2]
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_a_commit_of_an_earlier_round_is_stale(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 2)
    late = leased(ledger, job_id)
    ledger.fail(job_id, Failure("x", "y"))
    ledger.retry(job_id)
    assert commit(ledger, late) == "stale"


def test_retry_refuses_a_job_that_runs_or_was_never_accepted(store: JobStore, ledger: Ledger) -> None:
    with pytest.raises(UnknownJob):
        ledger.retry("000000000000")
    job_id = make_job(store, ledger)
    with pytest.raises(UsageError, match="is queued"):
        ledger.retry(job_id)


def test_a_retry_of_a_running_job_forgets_nothing_of_it(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    first = leased(ledger, job_id)
    assert commit(ledger, first) == "committed"
    with pytest.raises(UsageError, match="running"):
        ledger.retry(job_id, lambda: [first.chunk])
    assert ledger.committed(job_id) == {first.chunk: [first.version]}
    assert store.job(job_id).counts == Counts(1, 0)


def test_a_job_whose_producer_sends_no_heartbeat_fails(store: JobStore, ledger: Ledger) -> None:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "echo"))
    payloads(store, job_id).add_records(0, b"payload")
    seen = look(ledger, job_id).producer_seen
    payloads(store, job_id).add_records(1, b"payload")
    assert not ledger.abandon(job_id, seen), "it was seen since"
    assert ledger.abandon(job_id, look(ledger, job_id).producer_seen)
    job = store.job(job_id)
    assert job.status is JobStatus.FAILED
    assert job.failure and job.failure.code == "producer_died"
    assert payloads(store, job_id).records(0) is None
    with pytest.raises(UsageError, match="never accepted"):
        ledger.retry(job_id)


def test_every_key_of_a_finished_job_has_a_time_to_live(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    ends = [make_job(store, ledger) for _ in range(3)]
    run_all(ledger, ends[0], failed=(1,))
    ledger.cancel(ends[1])
    lease(ledger, ends[2])
    ledger.fail(ends[2], Failure("x", "y"))
    for job_id in ends:
        for key in server.client.scan_iter(f"{JobKeys.of(job_id).job}*"):
            assert server.client.pttl(key) > 0, key
    assert server.client.scard(keys.ACTIVE) == 0


def write_late(store: JobStore, ledger: Ledger, held: Lease) -> None:
    """Do all that a producer and a worker may still do who do not know yet that their job is over."""
    late = payloads(store, held.job_id)
    for write in (
        lambda: late.add_records(9, b"late"),
        lambda: late.add_examples("train", 9, b"late"),
    ):
        with pytest.raises(NotSubmitting):
            write()
    store.set_field(held.job_id, "producer_seen", "5")
    late.write_outcomes(held.chunk, held.version, b"late")
    assert commit(ledger, held) == "closed"
    late.delete_outcomes(held.chunk, held.version)
    assert ledger.renew(held) not in ("queued", "running")
    ledger.note_isolated(held, done=0, now=1, kept=3)
    ledger.note_progress(held, 100)
    ledger.refuse(held.job_id, "w", "late")
    ledger.withdraw_refusal(held.job_id, "w")
    ledger.release_chunk(held, delay=1)
    assert ledger.issue_tickets(held.job_id, 6) == []
    assert reap(ledger, held.job_id) == []


@pytest.mark.parametrize("end", ["failed", "given up", "cancelled", "completed", "deleted", "expired"])
def test_late_writers_leave_nothing_behind(end: str, store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    if end == "failed":
        ledger.fail(job_id, Failure("x", "y"))
    elif end == "given up":
        server.client.hset(JobKeys.of(job_id).job, mapping={"status": "submitting", "producer_seen": 0})
        assert ledger.abandon(job_id, "0")
    elif end == "cancelled":
        ledger.cancel(job_id)
        server.client.delete(JobKeys.of(job_id).lease(held.chunk))
        reap(ledger, job_id)
    elif end == "completed":
        die(ledger, job_id)
        run_all(ledger, job_id)
    elif end == "deleted":
        store.delete(job_id)
    else:
        server.client.unlink(*JobKeys.of(job_id).all())
    write_late(store, ledger, held)
    for key in server.client.scan_iter(f"{JobKeys.of(job_id).job}*"):
        assert server.client.pttl(key) > 0, key


def test_a_retried_job_does_not_expire_while_it_runs(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger)
    run_all(ledger, job_id, failed=(0,))
    ledger.retry(job_id)
    for key in server.client.scan_iter(f"{JobKeys.of(job_id).job}*"):
        assert server.client.pttl(key) == -1, key


def test_forgotten_jobs_leave_the_list(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger)
    server.client.delete(JobKeys.of(job_id).job)
    assert list(store.each_job()) == []
    assert server.client.zcard(keys.JOBS) == 0
