"""Jobs that wait for others: blocked, then queued or cancelled, by the same steps that end those others."""

import pytest

from common.errors import UsageError
from common.jobs import JobSpec, JobStatus, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Failure
from common.redis import keys
from common.redis.keys import JobKeys
from tests.support.ledger_jobs import die, lease, leased, look, make_job, run_all

FAILURE = Failure("model_not_found", "There is no such model.")


def statuses(store: JobStore, *job_ids: str) -> list[str]:
    return [str(store.job(job_id).status) for job_id in job_ids]


def ttl(store: JobStore, job_id: str) -> int:
    return int(store.client.ttl(JobKeys.of(job_id).job))


def test_a_job_waits_until_all_of_its_predecessors_are_completed(store: JobStore, ledger: Ledger) -> None:
    first, second = make_job(store, ledger), make_job(store, ledger)
    third = make_job(store, ledger, after=(first, second))
    assert statuses(store, third) == ["blocked"]
    assert lease(ledger, third) is None and look(ledger, third).status == "blocked"
    run_all(ledger, first)
    assert statuses(store, third) == ["blocked"] and not store.take_unblocked(10)
    run_all(ledger, second)
    assert statuses(store, third) == ["queued"]
    assert store.take_unblocked(10) == [third] and third in store.due()
    run_all(ledger, third)
    assert statuses(store, third) == ["completed"]


def test_a_job_whose_predecessors_are_completed_is_queued_at_once(store: JobStore, ledger: Ledger) -> None:
    first = make_job(store, ledger)
    run_all(ledger, first)
    assert statuses(store, make_job(store, ledger, after=(first,))) == ["queued"]


def test_a_failure_cancels_the_rest_of_a_chain_with_the_first_cause(store: JobStore, ledger: Ledger) -> None:
    chain = [make_job(store, ledger)]
    for _ in range(20):
        chain.append(make_job(store, ledger, after=(chain[-1],)))
    anyway = make_job(store, ledger, after=(chain[0], chain[-1]), after_any=True)
    told = JobSpec(new_job_id(), "test-echo", after=(chain[-1],), notify="https://example.org/")
    store.create(told)
    ledger.accept(told.id, 1, 1)
    ledger.fail(chain[0], FAILURE)
    assert statuses(store, *chain) == ["failed", *["cancelled"] * 20]
    reasons = {store.job(job_id).failure for job_id in chain[1:]}
    message = f"job {chain[0]} failed: model_not_found: There is no such model."
    assert reasons == {Failure("predecessor_failed", message)}
    assert statuses(store, anyway) == ["queued"] and not set(chain) & set(store.active())
    assert statuses(store, told.id) == ["cancelled"]
    assert store.client.zscore(keys.NOTIFICATIONS, told.id) is not None  # its URL is told too
    late = make_job(store, ledger, after=(chain[20],))
    assert (statuses(store, late), store.job(late).failure) == (["cancelled"], Failure("predecessor_failed", message))
    run_all(ledger, anyway)
    assert all(ttl(store, job_id) > 0 for job_id in (*chain, anyway, late))


def test_cancelling_and_deleting_end_what_waits(store: JobStore, ledger: Ledger) -> None:
    first, other = make_job(store, ledger), make_job(store, ledger)
    waiting, doubly = make_job(store, ledger, after=(first,)), make_job(store, ledger, after=(other, first))
    held = leased(ledger, first)
    assert ledger.cancel(first) == "cancelling" and statuses(store, waiting) == ["blocked"]
    assert ledger.cancel(waiting) == "cancelled" and store.job(waiting).failure is None
    ledger.release_chunk(held)
    assert statuses(store, first, doubly) == ["cancelled", "cancelled"]
    assert store.job(doubly).failure == Failure("predecessor_failed", f"job {first} was cancelled")

    waiting = make_job(store, ledger, after=(other,))
    anyway = make_job(store, ledger, after=(other,), after_any=True)
    assert store.delete(other, "finished") == "queued"
    assert store.delete(other, "any") == "deleted" and statuses(store, waiting, anyway) == ["cancelled", "queued"]
    assert store.job(waiting).failure == Failure("predecessor_failed", f"job {other} was deleted or has expired")
    assert statuses(store, make_job(store, ledger, after=(other,))) == ["cancelled"]


def test_results_are_kept_until_the_jobs_after_them_have_ended(store: JobStore, ledger: Ledger) -> None:
    first, other = make_job(store, ledger), make_job(store, ledger)
    run_all(ledger, first)
    assert ttl(store, first) > 0
    second, third = make_job(store, ledger, after=(first,)), make_job(store, ledger, after=(first, other))
    assert ttl(store, first) == -1 and store.delete(first, "finished") == "awaited"
    run_all(ledger, second)
    assert ttl(store, first) == -1 and ttl(store, second) > 0
    assert sorted(store.waiters(first)) == sorted([second, third])
    store.delete(third)
    assert ttl(store, first) > 0 and store.waiters(first) == [second]
    ledger.retry(second)  # which has nothing to retry
    assert ttl(store, first) > 0 and store.delete(first, "finished") == "deleted"


def test_a_job_that_others_need_is_retried_as_any_other(store: JobStore, ledger: Ledger) -> None:
    first = make_job(store, ledger)
    run_all(ledger, first, failed=(0,))
    reader = make_job(store, ledger, after=(first,))
    assert ttl(store, first) == -1
    assert ledger.retry(first) == 1 and run_all(ledger, first) == [0]
    assert ledger.retry(first, lambda: [1, 2]) == 2 and run_all(ledger, first) == [1, 2]
    store.client.delete(JobKeys.of(first).commit_history)
    assert ledger.retry(first) == 0 and not store.client.hlen(JobKeys.of(first).open)
    assert statuses(store, first, reader) == ["completed", "queued"]


def test_what_the_input_of_an_input_is_made_of_is_kept_as_long(store: JobStore, ledger: Ledger) -> None:
    chain = [make_job(store, ledger)]
    for _ in range(3):
        spec = JobSpec(new_job_id(), "test-echo", inputs=(f"job:{chain[-1]}",), after=(chain[-1],))
        store.create(spec)
        ledger.accept(spec.id, 1, 1)
        chain.append(spec.id)
    for job_id in chain[:-1]:
        run_all(ledger, job_id)
    assert [ttl(store, job_id) for job_id in chain] == [-1] * 4
    assert store.delete(chain[0], "finished") == "awaited"
    run_all(ledger, chain[3])
    assert all(ttl(store, job_id) > 0 for job_id in chain)


def test_a_cancelled_job_is_retried_after_the_one_it_waits_for(store: JobStore, ledger: Ledger) -> None:
    first = make_job(store, ledger)
    second = make_job(store, ledger, after=(first,))
    run_all(ledger, first, failed=(0,))  # records that fail do not fail the job
    assert statuses(store, first, second) == ["completed", "queued"]
    third = make_job(store, ledger, after=(second,))
    ledger.fail(second, FAILURE)
    with pytest.raises(UsageError, match=f"before the job that it waits for: job {second} failed"):
        ledger.retry(third)
    assert statuses(store, third) == ["cancelled"]
    ledger.retry(second)
    ledger.retry(third)
    assert statuses(store, second, third) == ["queued", "blocked"] and store.job(third).failure is None
    run_all(ledger, second, failed=(1,))
    assert statuses(store, third) == ["queued"]
    run_all(ledger, third, failed=(2,))
    # One that ran before waits for a retry too, and runs even if that fails.
    ledger.retry(second)
    ledger.retry(third)
    assert statuses(store, second, third) == ["queued", "blocked"]
    ledger.cancel(second)
    assert run_all(ledger, third) == [2] and statuses(store, third) == ["completed"]


def test_a_worker_that_dies_holds_back_what_waits(store: JobStore, ledger: Ledger) -> None:
    first = make_job(store, ledger)
    second = make_job(store, ledger, after=(first,))
    leased(ledger, first)
    die(ledger, first)
    assert statuses(store, first, second) == ["running", "blocked"]
    run_all(ledger, first)
    assert statuses(store, second) == ["queued"]


def test_a_reaper_decides_where_the_end_of_a_predecessor_was_missed(store: JobStore, ledger: Ledger) -> None:
    first = make_job(store, ledger)
    second, third = make_job(store, ledger, after=(first,)), make_job(store, ledger, after=(first,))
    store.client.delete(JobKeys.of(first).waiters)
    run_all(ledger, first)
    assert statuses(store, second) == ["blocked"]
    assert look(ledger, second).status == "queued" and run_all(ledger, second)
    store.client.delete(JobKeys.of(first).job)
    assert look(ledger, third).status == "cancelled"


def test_a_broken_job_does_not_hold_back_others_that_wait(store: JobStore, ledger: Ledger) -> None:
    first = make_job(store, ledger)
    second = make_job(store, ledger, after=(first,))
    store.client.set(JobKeys.of("0" * 12).job, "no hash")
    store.client.zadd(JobKeys.of(first).waiters, {"0" * 12: 0})
    run_all(ledger, first)
    assert statuses(store, first, second) == ["completed", "queued"]


def test_a_step_decides_about_a_bounded_number_of_jobs_and_reapers_about_the_rest(
    store: JobStore, ledger: Ledger
) -> None:
    first = make_job(store, ledger, 1)
    waiting = [make_job(store, ledger, 1, after=(first,)) for _ in range(300)]
    ledger.fail(first, FAILURE)
    left = {job_id for job_id in waiting if store.job(job_id).status is JobStatus.BLOCKED}
    assert len(left) == 50
    ledger.reap_jobs(sorted(left))
    assert {store.job(job_id).status for job_id in waiting} == {JobStatus.CANCELLED} and ttl(store, first) > 0
