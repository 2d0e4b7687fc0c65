"""One turn: a ticket becomes a lease, the lease's records become outcomes, the outcomes are committed.

Whatever happens, a turn ends with a sentence for Flower and the log, and never raises what would kill the worker. One
that a fault ended, or that ended its job with one, raises that sentence: Flower counts it as failed.
"""

import logging
import uuid
from typing import NoReturn

import redis

from common.errors import Cancelled, ModelError, PayloadError, StorageError, UnknownJob, WorkerError
from common.jobs import Job, JobSpec, JobStatus
from common.payloads.codec import positions_to_retry
from common.payloads.job_payloads import JobPayloads
from common.queue.heartbeats import live_workers, serving, target_tickets
from common.queue.ledger import MAX_TICKETS, MIN_TICKETS, Lease
from common.queue.output_commit import finish_commit
from common.records import Failure
from workers.celery_worker.context import WorkerContext
from workers.celery_worker.isolation_journal import SERIAL_AFTER, IsolationJournal
from workers.device.client.client import ChunkResult
from workers.disk_space import PERMANENT_ERRNOS
from workers.leases import HeldLease, retry_while_unavailable

logger = logging.getLogger(__name__)

_WORKERS_DIED = "Chunk {} was begun {} times and never ended: its workers died, or were stopped by force."

#: Leases of one chunk in one round that ended in the death of their workers and led nowhere: then its job fails.
MAX_ATTEMPTS = 10
#: Faults that may pass (the hub, a full disk), met by one chunk in one round: then its job fails.
MAX_TRIES = 10
#: Seconds for which outcomes wait for files that cannot be written; then the chunk is run again, later.
FILES_RETRY_SECONDS = 30.0
#: Why this worker cannot serve a job, now or soon; another one may.
_WORKER_SPECIFIC = frozenset(
    {
        "no_memory",
        "load_timeout",
        "missing_library",
        "model_not_allowed",
        "model_unreadable",
        "models_store",
        "address_not_allowed",
    }
)


class TicketFailed(Exception):
    """Raised, with what happened in words, by a turn that a fault ended, or that ended its job with one."""

    def __repr__(self) -> str:
        return str(self)  # what Flower shows


def run_ticket(room: WorkerContext, job_id: str, ticket: str) -> str:
    """Do one chunk of the job that the ticket names; return what happened, in words.

    Raises:
        TicketFailed: a fault ended the turn, or its job.
    """
    try:
        return _run_ticket(room, job_id, ticket)
    except TicketFailed:
        raise
    except Exception as error:  # the boundary: a MemoryError alone would end the whole Celery process
        # A lease that was held runs out now, and the chunk is opened again, ten times at most.
        logger.exception("a turn at job %s", job_id)
        raise TicketFailed(f"given up: {type(error).__name__}: {error}") from None


def _run_ticket(room: WorkerContext, job_id: str, ticket: str) -> str:
    try:
        job = room.store.job(job_id)
        if job.status.finished:
            return f"void: the job is {job.status}"
        if not _should_run(room, job):
            return _requeue(room, job.spec, ticket)
        lease = _lease(room, job.spec, ticket)
    except UnknownJob:
        return "void: there is no such job"
    except (redis.RedisError, Cancelled) as error:
        return f"void: no lease ({error})"  # the reaper sends another ticket
    if lease is None:
        return "void: nothing left to do"
    if lease.next_ticket:
        room.tickets.send(job.spec, [lease.next_ticket])
    with room.affinity.at(job.spec), room.leases.hold(lease) as held:
        return _process(room, job, held)


def _should_run(room: WorkerContext, job: Job) -> bool:
    """Whether the turn is this worker's, and now; a ticket may have come by another queue than its job's."""
    if job.spec.queue not in room.queues or room.stopping.is_set():
        return False
    return not room.refusals.is_skipped(job.id, job.round) and room.affinity.should_run(job.spec)


def _lease(room: WorkerContext, spec: JobSpec, ticket: str) -> Lease | None:
    """Return a lease; asked for until there is an answer, or one that was lost would look like a worker's death."""
    call, target = uuid.uuid4(), _target(room, spec)
    return retry_while_unavailable(
        lambda: room.ledger.lease(spec.id, ticket, room.name, target, call=call), room.stopping
    )


def _process(room: WorkerContext, job: Job, held: HeldLease) -> str:
    try:
        held.retry_while_unavailable(lambda: room.refusals.withdraw(job.id))
        return _compute_and_commit(room, job, held)
    except Cancelled:
        return _release(room, job.spec, held.lease, f"given back: {held.reason}")
    except redis.RedisError as error:  # one that waiting does not mend
        _retry_later(room, job, held, Failure("chunk_keeps_failing", f"Chunk {held.lease.chunk + 1}: {error}"))


def _compute_and_commit(room: WorkerContext, job: Job, held: HeldLease) -> str:
    lease = held.lease
    if lease.attempt > MAX_ATTEMPTS:
        _fail(room, held, Failure("chunk_keeps_failing", _WORKERS_DIED.format(lease.chunk + 1, MAX_ATTEMPTS)))
    try:
        payloads = room.store.payloads(job.spec)
        result = _compute(room, job, held, payloads)
        return _commit(room, job, held, payloads, result)
    except (ModelError, WorkerError, PayloadError, MemoryError, OSError) as error:
        return _handle_error(room, job, held, error)


def _handle_error(room: WorkerContext, job: Job, held: HeldLease, error: Exception) -> str:
    lease = held.lease
    if isinstance(error, PayloadError):
        _fail(room, held, Failure("broken_payload", f"Chunk {lease.chunk + 1} cannot be read: {error}"))
    if isinstance(error, ModelError):
        failure = Failure(error.code, error.message)
        if error.code in _WORKER_SPECIFIC:
            return _refuse_here(room, job, held, failure)
        _fail(room, held, failure)
    if not isinstance(error, WorkerError):
        logger.exception("chunk %d of job %s: this worker's own fault", lease.chunk, lease.job_id)
        failure = Failure("worker_fault", f"{type(error).__name__}: {error}")
        if isinstance(error, OSError) and error.errno in PERMANENT_ERRNOS:
            return _refuse_here(room, job, held, failure)
        error = WorkerError(failure.code, failure.message)
    return _refuse(room, job, held, error)


def _compute(room: WorkerContext, job: Job, held: HeldLease, payloads: JobPayloads) -> ChunkResult:
    if job.spec.training is not None:
        return _train(room, job, held)
    lease = held.lease
    payload = held.retry_while_unavailable(lambda: payloads.records(lease.chunk))
    if payload is None:
        raise PayloadError("its records are not in the store")
    earlier = _earlier_outcomes(room, held, payloads) if lease.round else []

    def on_stage(text: str) -> None:
        try:
            room.store.note(job.id, "stage", text)
        except redis.RedisError as error:
            logger.info("stage of job %s not noted: %s", job.id, error)

    alone = IsolationJournal(room.ledger, held) if lease.attempt > SERIAL_AFTER else None
    result = room.device.run(
        job.spec,
        payload,
        positions_to_retry(earlier) if earlier else None,
        cancelled=held.cancelled,
        on_stage=on_stage,
        caution=alone.caution() if alone else None,
    )
    if alone:
        alone.end()
    return result


def _earlier_outcomes(room: WorkerContext, held: HeldLease, payloads: JobPayloads) -> list[bytes]:
    """Return the outcomes of earlier rounds; of a chunk that has lost some none, and all of its records run again."""
    lease = held.lease
    found = held.retry_while_unavailable(lambda: payloads.outcomes(lease.chunk))
    earlier = [payload for payload in found if payload is not None]
    if len(earlier) == len(found):
        return earlier
    logger.warning("chunk %d of job %s has lost its outcomes: it is run anew", lease.chunk, lease.job_id)
    held.retry_while_unavailable(lambda: room.ledger.discard(lease.job_id, lease.round, [lease.chunk]))
    return []


def _train(room: WorkerContext, job: Job, held: HeldLease) -> ChunkResult:
    def on_checkpoint(steps: int) -> None:
        try:
            room.ledger.advance(held.lease, steps)
        except redis.RedisError as error:  # the next checkpoint says more
            logger.info("checkpoint of job %s at step %d not noted: %s", job.id, steps, error)

    return room.tuner.run(job, held, room.stopping, on_checkpoint)


def _commit(room: WorkerContext, job: Job, held: HeldLease, payloads: JobPayloads, result: ChunkResult) -> str:
    lease, counts = held.lease, result.counts
    held.retry_while_unavailable(
        lambda: payloads.write_outcomes(lease.chunk, lease.version, result.payload), files=FILES_RETRY_SECONDS
    )
    max_failed = job.spec.max_failed(job.records or 0)
    answer = held.retry_while_unavailable(lambda: room.ledger.commit(lease, counts, result.run_info, max_failed))
    # Refused, and yet counted: the first answer was lost on its way, and this one is to the same commit once more.
    counted = answer == "committed" or lease.version in held.retry_while_unavailable(
        lambda: payloads.versions(lease.chunk)
    )
    if result.settle is not None:
        result.settle(counted)
    if not counted:
        _drop_outcomes(held, payloads)
        return f"chunk {lease.chunk + 1}: dropped, {answer}"
    finish_commit(room.store, room.ledger, payloads, lease)
    room.meter.add(counts.done)
    rate = counts.done / result.seconds if result.seconds else 0.0
    failed = f", {counts.failed} failed" if counts.failed else ""
    if max_failed is not None and counts.failed:
        _check_still_running(held, room)
    return f"chunk {lease.chunk + 1} of {job.chunks}: {counts.succeeded} done{failed}, {rate:,.0f} records/s"


def _check_still_running(held: HeldLease, room: WorkerContext) -> None:
    """Raise `TicketFailed` if this commit had one failed record too many."""
    job = held.retry_while_unavailable(lambda: room.store.job(held.lease.job_id))
    if job.status is JobStatus.FAILED and job.failure:
        raise TicketFailed(f"job failed: {job.failure.code}: {job.failure.message}")


def _drop_outcomes(held: HeldLease, payloads: JobPayloads) -> None:
    lease = held.lease
    try:
        held.retry_while_unavailable(lambda: payloads.delete_outcomes(lease.chunk, lease.version))
    except StorageError as error:  # nobody reads them; it is no fault of a chunk that others have done
        logger.warning("outcomes of chunk %d of job %s not taken back: %s", lease.chunk, lease.job_id, error)


def _fail(room: WorkerContext, held: HeldLease, failure: Failure) -> NoReturn:
    job_id = held.lease.job_id
    held.retry_while_unavailable(lambda: room.ledger.fail(job_id, failure))
    logger.error("job %s failed: %s: %s", job_id, failure.code, failure.message)
    raise TicketFailed(f"job failed: {failure.code}: {failure.message}")


def _refuse(room: WorkerContext, job: Job, held: HeldLease, error: WorkerError) -> str:
    """Give the chunk back, for another worker or for later; end the job where there is neither."""
    if (
        error.code == "device_process_dies"
    ):  # no fault of the chunk; if it stays so, the worker ends (`workers.celery_worker.heartbeat`)
        room.refusals.pause(held.lease)
        raise TicketFailed(_release(room, job.spec, held.lease, f"given back: {error.message}"))
    if error.code not in _WORKER_SPECIFIC:
        _retry_later(room, job, held, Failure(error.code, error.message))
    failure = Failure("no_worker_fits", f"No live worker can serve this job: {error.message}")
    return _refuse_here(room, job, held, failure)


def _retry_later(room: WorkerContext, job: Job, held: HeldLease, failure: Failure) -> NoReturn:
    """Give the chunk back for later, after a fault that may pass; end the job when it has not for long."""
    tries = held.lease.tries + 1
    if tries >= MAX_TRIES:
        _fail(room, held, Failure(failure.code, f"{failure.message} (After {MAX_TRIES} tries.)"))
    rest = room.refusals.pause(held.lease)
    raise TicketFailed(_release(room, job.spec, held.lease, f"to be tried again: {failure.message}", rest=rest))


def _refuse_here(room: WorkerContext, job: Job, held: HeldLease, failure: Failure) -> str:
    """Give the chunk back for another worker; end the job when no live one is left that has not refused it."""
    refused = room.refusals.add(held.lease, failure.message)
    workers = {worker.name for worker in serving(live_workers(room.store.client), job.spec.queue)}
    if room.name in workers and workers <= refused:  # after an outage nobody may seem to live, not even this one
        _fail(room, held, failure)
    return _release(room, job.spec, held.lease, f"refused: {failure.message}")


def _release(room: WorkerContext, spec: JobSpec, lease: Lease, text: str, *, rest: float | None = None) -> str:
    """Open a chunk again, and send the ticket that lets another worker take it at once, unless it is to rest first."""
    try:
        room.ledger.give_back(lease, rest=rest)
        if rest is None:
            room.tickets.send(spec, room.ledger.issue_tickets(spec.id, _target(room, spec)))
    except redis.RedisError as error:
        logger.warning("chunk %d of job %s runs out instead: %s", lease.chunk, lease.job_id, error)
    logger.info("chunk %d of job %s %s", lease.chunk, lease.job_id, text)
    return text


def _requeue(room: WorkerContext, spec: JobSpec, ticket: str) -> str:
    """Leave the turn to another worker, or for later: the ticket goes to the tail of the queue, if it still counts."""
    if not room.ledger.has_ticket(spec.id, ticket):
        return "void: not one of the job's tickets"
    room.tickets.requeue(spec, ticket)
    return "passed on"


def _target(room: WorkerContext, spec: JobSpec) -> int:
    return target_tickets(room.peers.now(), spec.queue, MIN_TICKETS, MAX_TICKETS)
