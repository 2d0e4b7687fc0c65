"""The ledger's scripts on a real Redis: leases, commits, ends."""

import threading

from common.jobs import JobSpec, JobStatus, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Counts, Failure
from common.redis import keys
from tests.support.ledger_jobs import commit, lease, leased, look, make_job, payloads, reap, run_all
from tests.support.processes import wait_until


def test_a_job_goes_from_submitting_to_completed(store: JobStore, ledger: Ledger) -> None:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "echo"))
    assert store.job(job_id).status is JobStatus.SUBMITTING
    payloads(store, job_id).add_records(0, b"x")
    ledger.accept(job_id, 1, 1)
    assert store.job(job_id).status is JobStatus.QUEUED
    held = leased(ledger, job_id)
    assert store.job(job_id).status is JobStatus.RUNNING
    assert commit(ledger, held) == "committed"
    job = store.job(job_id)
    assert job.status is JobStatus.COMPLETED
    assert job.counts == Counts(1, 0, 0)
    assert job_id not in store.active()


def test_a_name_of_a_file_that_is_no_text_does_not_hide_what_was_submitted(store: JobStore, ledger: Ledger) -> None:
    spec = JobSpec(new_job_id(), "echo", inputs=("\udcff\\ud800.txt",), store="/in/files", notify="https://a.org/")
    store.create(spec)
    ledger.accept(spec.id, 1, 1)
    assert ledger.commit(leased(ledger, spec.id), Counts(1), {}) == "committed"
    assert look(ledger, spec.id).output_uncommitted and store.job(spec.id).status is JobStatus.RUNNING
    assert ledger.note_output_committed(spec.id, 0) and store.job(spec.id).status is JobStatus.COMPLETED
    assert store.client.zscore(keys.NOTIFICATIONS, spec.id) is not None


def test_nothing_of_a_job_is_leased_before_it_is_accepted(store: JobStore, ledger: Ledger) -> None:
    job_id = new_job_id()
    store.create(JobSpec(job_id, "echo"))
    payloads(store, job_id).add_records(0, b"x")
    assert ledger.issue_tickets(job_id, 6) == []
    assert ledger.lease(job_id, "any ticket", "w", 6) is None


def test_chunks_are_leased_in_order_and_once(store: JobStore, ledger: Ledger) -> None:
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


def test_a_ticket_leases_its_chunk_once(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    ticket = ledger.issue_tickets(job_id, 1)[0]
    assert ledger.lease(job_id, ticket, "w", 1)
    assert ledger.lease(job_id, ticket, "w", 1) is None


def test_a_ticket_that_is_not_on_the_list_is_void(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    assert ledger.lease(job_id, "forged", "w", 6) is None


def test_a_lease_brings_the_next_ticket_while_chunks_are_open(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 2)
    first = ledger.issue_tickets(job_id, 1)
    assert len(first) == 1
    held = ledger.lease(job_id, first[0], "w", 1)
    assert held and held.next_ticket
    last = ledger.lease(job_id, held.next_ticket, "w", 1)
    assert last and last.next_ticket is None


def test_a_second_commit_of_a_chunk_changes_nothing(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = leased(ledger, job_id)
    assert commit(ledger, held) == "committed"
    assert commit(ledger, held) == "double"
    assert store.job(job_id).counts.done == 1


def test_cancel_takes_effect_at_once_while_nothing_is_leased(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    assert ledger.cancel(job_id) == "cancelled"
    assert lease(ledger, job_id) is None


def test_cancel_waits_for_the_running_chunks(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = leased(ledger, job_id)
    assert ledger.cancel(job_id) == "cancelling"
    assert ledger.renew(held) == "cancelling"
    ledger.release_chunk(held)
    assert store.job(job_id).status is JobStatus.CANCELLED


def test_a_cancelled_job_whose_holder_died_ends_too(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    assert lease(ledger, job_id)
    ledger.cancel(job_id)
    wait_until(lambda: reap(ledger, job_id) or store.job(job_id).status.finished, 5)
    assert store.job(job_id).status is JobStatus.CANCELLED


def test_a_failed_job_keeps_its_reason_and_what_is_done(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = leased(ledger, job_id)
    commit(ledger, held)
    assert ledger.fail(job_id, Failure("model_not_found", "There is no such model."))
    assert not ledger.fail(job_id, Failure("other", "too late"))
    job = store.job(job_id)
    assert (job.status, job.counts.done) == (JobStatus.FAILED, 1)
    assert job.failure == Failure("model_not_found", "There is no such model.")


def test_a_producer_that_gives_up_does_not_delete_a_job_that_was_accepted(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    assert store.delete(job_id, "unaccepted") == "queued" and store.exists(job_id)
    cut_off = new_job_id()
    store.create(JobSpec(cut_off, "echo"))
    assert store.delete(cut_off, "unaccepted") == "deleted"
