"""What the ledger makes of leases that did not end in a commit, and of answers that were lost."""

import time
import uuid

from common.jobs import JobStatus
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.redis.keys import JobKeys
from tests.conftest import LEASE
from tests.support.ledger_jobs import commit, die, lease, leased, make_job, reap, run_all
from tests.support.processes import RedisServer, wait_until


def test_after_a_transient_fault_a_chunk_waits_and_is_counted_apart(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    assert held.tries == 0
    ledger.release_chunk(held, delay=LEASE)
    assert lease(ledger, job_id) is None, "nobody is to try again at once"
    again = wait_until(lambda: reap(ledger, job_id) == [] and lease(ledger, job_id), 5)
    assert again and (again.chunk, again.attempt, again.tries) == (0, 1, 1)
    ledger.release_chunk(again, delay=100)
    assert ledger.cancel(job_id) == "cancelled", "nobody waits for a chunk that rests"
    assert ledger.retry(job_id) == 1
    assert run_all(ledger, job_id) == [0]


def test_a_late_renewal_does_not_lease_a_released_chunk_again(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    ledger.release_chunk(held)
    assert ledger.renew(held) == "lost"
    assert lease(ledger, job_id), "it is open"


def test_a_chunk_released_after_its_lease_expired_is_open_once(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    die(ledger, job_id)
    ledger.release_chunk(held)
    again = leased(ledger, job_id)
    assert again.attempt == 1
    assert lease(ledger, job_id) is None
    ledger.release_chunk(held)
    assert ledger.renew(again) == "running", "the late one has no say any more"


def test_only_leases_that_led_nowhere_are_held_against_a_chunk(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    for attempt in (1, 2):
        held = leased(ledger, job_id)
        assert held.attempt == attempt
        die(ledger, job_id)
    for steps in (100, 200):
        held = leased(ledger, job_id)
        assert ledger.note_progress(held, steps)
        die(ledger, job_id)
    held = leased(ledger, job_id)
    assert held.attempt == 1, "both went further than any before"
    assert not ledger.note_progress(held, 200)
    die(ledger, job_id)
    last = leased(ledger, job_id)
    assert (last.attempt, last.number) == (2, 6)
    assert not ledger.note_progress(held, 300), "it is somebody else's now"


def test_a_worker_that_dies_over_a_record_alone_leaves_its_position(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    for attempt in (1, 2):
        held = leased(ledger, job_id)
        assert held.attempt == attempt
        ledger.note_isolated(held, done=None, now=7, kept=3)
        die(ledger, job_id)
    held = leased(ledger, job_id)
    assert ledger.isolated_deaths(held) == [7, 7]
    commit(ledger, held, failed=1)
    ledger.retry(job_id)
    again = leased(ledger, job_id)
    assert ledger.isolated_deaths(again) == [], "that was another round"


def test_a_chunk_released_in_the_middle_of_a_record_blames_no_record(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    for _ in range(2):
        held = leased(ledger, job_id)
        ledger.note_isolated(held, done=None, now=7, kept=3)
        ledger.release_chunk(held)
    held = leased(ledger, job_id)
    assert (held.attempt, ledger.isolated_deaths(held)) == (1, [])


def test_a_record_that_survives_in_isolation_is_progress_once(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    for _ in range(5):
        assert lease(ledger, job_id)
        die(ledger, job_id)
    for expected in (6, 4, 5):
        held = leased(ledger, job_id)
        assert held.attempt == expected
        ledger.note_isolated(held, done=0, now=1, kept=3)
        die(ledger, job_id)


def test_a_lease_whose_reply_was_lost_is_returned_to_the_same_call_only(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 3)
    [ticket], call = ledger.issue_tickets(job_id, 1), uuid.uuid4()
    first = ledger.lease(job_id, ticket, "w", 1, call=call)
    assert first and first.next_ticket
    assert ledger.lease(job_id, ticket, "w", 1, call=call) == first
    assert ledger.lease(job_id, ticket, "w", 1) is None
    commit(ledger, first)
    assert ledger.lease(job_id, ticket, "w", 1, call=call) is None


def test_a_chunk_committed_late_is_open_no_more(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger, 2)
    late = leased(ledger, job_id)
    die(ledger, job_id)
    assert commit(ledger, late) == "committed"
    assert server.client.lrange(JobKeys.of(job_id).open, 0, -1) == [b"1"]
    assert run_all(ledger, job_id) == [1]
    assert ledger.retry(job_id) == 0, "nothing is left to be retried"
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_a_lost_lease_is_opened_again_and_the_late_commit_is_a_double(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    late = leased(ledger, job_id, "frozen")
    opened = wait_until(lambda: reap(ledger, job_id), 5)
    assert opened == [0]
    assert ledger.renew(late) == "running", "nobody took it: its holder may go on"
    wait_until(lambda: reap(ledger, job_id), 5)
    again = leased(ledger, job_id, "other")
    assert again.attempt == 2
    assert ledger.renew(late) == "lost"
    assert commit(ledger, again) == "committed"
    assert commit(ledger, late) == "closed"
    assert store.job(job_id).counts.done == 1


def test_a_renewed_lease_stays(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    end = time.monotonic() + 3 * LEASE
    while time.monotonic() < end:
        assert ledger.renew(held) == "running"
        assert reap(ledger, job_id) == []


def test_a_released_chunk_comes_first_and_does_not_count_as_an_attempt(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    held = leased(ledger, job_id)
    ledger.release_chunk(held)
    again = leased(ledger, job_id)
    assert (again.chunk, again.attempt) == (held.chunk, 1)
