"""What is told of the jobs before and after one, without a worker."""

import time

from common.jobs import Job, JobSpec, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.settings import Settings
from producer.predecessors import find_cancelled, find_readers, find_waiting
from producer.queue_connection import QueueConnection
from tests.support.ledger_jobs import make_job, run_all
from tests.support.processes import RedisServer


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def make_reader(store: JobStore, ledger: Ledger, first: str, *more: str, after_any: bool = False) -> str:
    """Make a job of one chunk that reads the results of `first`, and waits for others too."""
    inputs, after = (f"job:{first}",), (first, *more)
    spec = JobSpec(new_job_id(), "test-echo", inputs=inputs, after=after, after_any=after_any, created_at=time.time())
    store.create(spec)
    ledger.accept(spec.id, 1, 1)
    return spec.id


def test_only_those_that_end_with_a_job_are_named(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    connection = QueueConnection(Settings(broker_url=server.url))
    first, other = make_job(store, ledger, 1), make_job(store, ledger, 1)
    anyway = make_reader(store, ledger, first, after_any=True)
    reader = make_reader(store, ledger, anyway)  # needs the results of the first, and does not wait for it
    second = make_job(store, ledger, 1, after=(first,))
    third = make_job(store, ledger, 1, after=(second, other))
    assert ids(find_waiting(connection, first)) == [second, third]
    ledger.cancel(first)
    assert ids(find_cancelled(connection, first)) == [second, third]
    run_all(ledger, anyway)
    run_all(ledger, reader)
    assert ids(find_readers(connection, first)) == [anyway, reader]
    assert ids(find_readers(connection, anyway)) == [reader]

    for job_id in (first, second):
        ledger.retry(job_id)
        run_all(ledger, job_id)
    for job_id in (first, second):
        ledger.retry(job_id, lambda: [0])
    assert store.job(second).status == "blocked" and not find_waiting(connection, first)
    ledger.cancel(first)
    assert run_all(ledger, second) == [0]  # it had been ready before
