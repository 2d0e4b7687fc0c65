"""Ranges of a job's vectors in the ledger: noted once, kept in later rounds, and checked by each commit."""

from common.jobs import JobStatus
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Counts, Failure
from common.redis.keys import JobKeys
from common.vector_ranges import NotedRanges, Ranges
from tests.support.ledger_jobs import leased, look, make_job, put, run_all
from tests.support.processes import RedisServer

FIRST = NotedRanges("a" * 32, Ranges("chunk 1 (256 records)", [-0.5, 0.25], [0.5, 1.0]))
SECOND = NotedRanges("b" * 32, Ranges("chunk 2 (256 records)", [-1.0, 0.0], [1.0, 2.0]))


def test_the_first_ranges_count_and_the_job_shows_them(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    assert ledger.noted_ranges(job_id) is None and store.job(job_id).ranges is None
    assert ledger.note_ranges(job_id, FIRST) == FIRST
    assert ledger.note_ranges(job_id, SECOND) == FIRST == ledger.noted_ranges(job_id)
    job = store.job(job_id)
    assert job.noted_ranges == FIRST
    assert job.as_dict()["ranges"] == {"source": "chunk 1 (256 records)", "min": [-0.5, 0.25], "max": [0.5, 1.0]}


def test_ranges_outlive_the_end_of_a_job_and_a_retry(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    job_id = make_job(store, ledger)
    ledger.note_ranges(job_id, FIRST)
    run_all(ledger, job_id, failed=(1,))
    assert ledger.note_ranges(job_id, SECOND) is None, "the job has ended"
    assert server.client.ttl(JobKeys.of(job_id).job) > 0
    assert ledger.retry(job_id) == 1
    assert ledger.note_ranges(job_id, SECOND) == FIRST


def test_a_job_that_ended_without_ranges_gets_none(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger)
    ledger.fail(job_id, Failure("bad_param", "why"))
    assert ledger.note_ranges(job_id, FIRST) is None and ledger.noted_ranges(job_id) is None


def test_a_chunk_with_other_ranges_than_the_job_is_run_again(
    store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    ledger.note_ranges(job_id, FIRST)
    server.client.hdel(JobKeys.of(job_id).job, "ranges", "ranges_id")  # as if Redis had lost its last second
    ledger.note_ranges(job_id, SECOND)
    put(ledger, held)
    assert ledger.commit(held, Counts(1), {}, None, FIRST.id) == "stale"
    assert look(ledger, job_id).open == 1
    again = leased(ledger, job_id)
    assert again.chunk == held.chunk
    put(ledger, again)
    assert ledger.commit(again, Counts(1), {}, None, SECOND.id) == "committed"
    assert store.job(job_id).status is JobStatus.COMPLETED


def test_a_chunk_whose_ranges_were_lost_is_run_again(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    held = leased(ledger, job_id)
    assert ledger.commit(held, Counts(1), {}, None, FIRST.id) == "stale"
    assert look(ledger, job_id).open == 1


def test_a_lease_is_seen_until_it_is_over(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 1)
    assert not ledger.is_leased(job_id, 0)
    held = leased(ledger, job_id)
    assert ledger.is_leased(job_id, 0)
    ledger.release_chunk(held)
    assert not ledger.is_leased(job_id, 0)
