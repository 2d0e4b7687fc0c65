"""Jobs for tests of the ledger, and what workers do with them, without a worker."""

import time

from common.jobs import JobSpec, new_job_id
from common.payloads.backends import outcome_name
from common.payloads.codec import encode_records
from common.payloads.job_payloads import JobPayloads
from common.queue.jobs import JobStore
from common.queue.ledger import Lease, Ledger, ReapReport
from common.records import Counts, Record
from common.redis.keys import JobKeys


def make_job(
    store: JobStore, ledger: Ledger, chunks: int = 3, after: tuple[str, ...] = (), *, after_any: bool = False
) -> str:
    spec = JobSpec(new_job_id(), "test-echo", created_at=time.time(), after=after, after_any=after_any)
    store.create(spec)
    for number in range(chunks):
        store.payloads(spec).add_records(number, encode_records([Record(number, f"text {number}")]))
    ledger.accept(spec.id, chunks, chunks)
    return spec.id


def payloads(store: JobStore, job_id: str) -> JobPayloads:
    """Return the payloads of a job that are in Redis, be the job there or not."""
    return store.payloads(JobSpec(job_id, "test-echo"))


def lease(ledger: Ledger, job_id: str, worker: str = "w") -> Lease | None:
    tickets = ledger.tickets(job_id) or set(ledger.issue_tickets(job_id, 6))
    return ledger.lease(job_id, min(tickets, default="none"), worker, 6)


def leased(ledger: Ledger, job_id: str, worker: str = "w") -> Lease:
    """Lease the next chunk of a job, which is to have one."""
    held = lease(ledger, job_id, worker)
    assert held, f"job {job_id} has no open chunk"
    return held


def commit(ledger: Ledger, held: Lease, failed: int = 0) -> str:
    put(ledger, held)
    return ledger.commit(held, Counts(1 - failed, failed), {})


def put(ledger: Ledger, held: Lease) -> None:
    """Write outcomes that nobody reads."""
    name = outcome_name(held.chunk, held.version)
    ledger.client.hset(JobKeys.of(held.job_id).output, name, b"outcomes")


def run_all(ledger: Ledger, job_id: str, failed: tuple[int, ...] = ()) -> list[int]:
    done = []
    while held := lease(ledger, job_id):
        assert commit(ledger, held, int(held.chunk in failed)) == "committed"
        done.append(held.chunk)
    return done


def look(ledger: Ledger, job_id: str) -> ReapReport:
    """Look after a job as a reaper does."""
    [found] = ledger.reap_jobs([job_id])
    assert isinstance(found, ReapReport), found
    return found


def reap(ledger: Ledger, job_id: str) -> list[int]:
    """Look after a job; return the chunks whose leases had run out."""
    return look(ledger, job_id).opened


def die(ledger: Ledger, job_id: str) -> None:
    """Let the leases of a job run out, as if their workers had died, and open their chunks."""
    for chunk in ledger.client.smembers(JobKeys.of(job_id).leased):
        ledger.client.delete(JobKeys.of(job_id).lease(int(chunk)))
    assert reap(ledger, job_id)
