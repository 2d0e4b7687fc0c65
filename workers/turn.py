"""One turn: a ticket becomes a lease, the lease's records become outcomes, the outcomes are committed.

Whatever happens, a turn ends with a sentence for Flower and the log, and never raises what would kill the worker.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

import redis
from kombu.exceptions import OperationalError

from common.connection import is_passing
from common.errors import ModelError, PayloadError, UnknownJob, WorkerError
from common.heartbeats import living, serving, ticket_target
from common.jobs import Job
from common.ledger import MIN_TICKETS, Lease
from common.payloads import failed_positions
from common.queue import send_tickets
from common.values import Failure, JobSpec
from workers.device_client import ChunkResult
from workers.leases import HeldLease
from workers.room import Room
from workers.runners.base import Cancelled

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Leases of one chunk in one round after which its records are run one by one: whole workers died over it.
CAUTIOUS_AFTER = 3


def take_turn(room: Room, job_id: str, ticket: str) -> str:
    """Do one chunk of the job that the ticket names; return what happened, in words."""
    try:
        job = room.store.job(job_id)
        if room.refusals.holds(job_id) or room.stopping.is_set():
            return _pass_on(room, job.spec, ticket)
        lease = room.ledger.lease(job_id, ticket, room.name, _target(room, job))
    except UnknownJob:
        return "void: there is no such job"
    except redis.RedisError as error:
        return f"void: no lease ({error})"  # the reaper sends another ticket
    if lease is None:
        return "void: nothing left to do"
    if lease.next_ticket:
        _send(room, job.spec, lease.next_ticket)
    with room.leases.hold(lease) as held:
        return _work(room, job, held)


def _work(room: Room, job: Job, held: HeldLease) -> str:
    lease = held.lease
    try:
        result = _compute(room, job, held)
        return _commit(room, job, held, result)
    except Cancelled:
        return _give_back(room, lease, f"given back: {held.reason}")
    except ModelError as error:
        return _fail(room, lease, Failure(error.code, error.message))
    except PayloadError as error:
        return _fail(room, lease, Failure("broken_payload", f"Chunk {lease.chunk} cannot be read: {error}"))
    except WorkerError as error:
        return _refuse(room, job, lease, error)
    except (redis.RedisError, MemoryError, OSError) as error:
        logger.exception("chunk %d of job %s: this worker's own fault", lease.chunk, lease.job_id)
        return _give_back(room, lease, f"given back: {type(error).__name__}: {error}", tried=True)


def _compute(room: Room, job: Job, held: HeldLease) -> ChunkResult:
    lease = held.lease
    payload = _patiently(held, lambda: room.store.records(job.id, lease.chunk))
    if payload is None:
        raise PayloadError("its records are not in the store")
    earlier = _patiently(held, lambda: room.store.outcomes(job.id, lease.chunk)) if lease.round else []

    def on_stage(text: str) -> None:
        try:
            room.store.note(job.id, "stage", text)
        except redis.RedisError as error:
            logger.info("stage of job %s not noted: %s", job.id, error)

    return room.device.run(
        job.spec,
        payload,
        failed_positions(earlier) if earlier else None,
        cancelled=held.given_up,
        on_stage=on_stage,
        cautious=lease.attempt > CAUTIOUS_AFTER,
    )


def _commit(room: Room, job: Job, held: HeldLease, result: ChunkResult) -> str:
    lease, counts = held.lease, result.counts
    _patiently(held, lambda: room.store.put_outcomes(job.id, lease.chunk, lease.version, result.payload))
    answer = _patiently(held, lambda: room.ledger.commit(lease, counts, result.facts))
    if answer != "committed" and lease.version not in room.store.layers(job.id, lease.chunk):
        room.store.drop_outcomes(job.id, lease.chunk, lease.version)
        return f"chunk {lease.chunk}: dropped, {answer}"
    room.meter.add(counts.done)
    rate = counts.done / result.seconds if result.seconds else 0.0
    failed = f", {counts.failed} failed" if counts.failed else ""
    return f"chunk {lease.chunk + 1} of {job.chunks}: {counts.succeeded} done{failed}, {rate:,.0f} records/s"


def _fail(room: Room, lease: Lease, failure: Failure) -> str:
    room.ledger.fail(lease.job_id, failure)
    logger.error("job %s failed: %s: %s", lease.job_id, failure.code, failure.message)
    return f"job failed: {failure.code}: {failure.message}"


def _refuse(room: Room, job: Job, lease: Lease, error: WorkerError) -> str:
    """Give the chunk back for another worker, and end the job when there is none left that would take it."""
    refused = room.refusals.add(job.id, error.message)
    text = _give_back(room, lease, f"refused: {error.message}", tried=True)
    workers = {worker.name for worker in serving(living(room.store.client), job.spec.queue)}
    if error.code == "no_memory" and workers <= refused:
        room.ledger.fail(job.id, Failure("no_worker_fits", f"No live worker can serve this job: {error.message}"))
    return text


def _give_back(room: Room, lease: Lease, text: str, *, tried: bool = False) -> str:
    try:
        room.ledger.give_back(lease, tried=tried)
    except redis.RedisError as error:
        logger.warning("chunk %d of job %s runs out instead: %s", lease.chunk, lease.job_id, error)
    logger.info("chunk %d of job %s %s", lease.chunk, lease.job_id, text)
    return text


def _pass_on(room: Room, spec: JobSpec, ticket: str) -> str:
    """Leave the turn to another worker: the same ticket goes to the tail of the queue."""
    room.stopping.wait(0.5)  # without it, a lone worker that refuses would spin
    _send(room, spec, ticket)
    return "passed on to another worker"


def _send(room: Room, spec: JobSpec, ticket: str) -> None:
    try:
        send_tickets(room.app, spec, [ticket])
    except (OperationalError, redis.RedisError) as error:
        logger.warning("ticket of job %s not sent, the reaper will: %s", spec.id, error)


def _target(room: Room, job: Job) -> int:
    return ticket_target(living(room.store.client), job.spec.queue, MIN_TICKETS)


def _patiently(held: HeldLease, step: Callable[[], T]) -> T:
    """Return what `step` gives, trying again while Redis is away or full, until the turn is given up.

    Raises:
        Cancelled: the turn was given up meanwhile.
    """
    pause = 0.1
    while True:
        try:
            return step()
        except redis.RedisError as error:
            if not is_passing(error):
                raise
            logger.warning("waiting for Redis: %s", error)
        if held.given_up.wait(pause):
            raise Cancelled
        pause = min(pause * 2, 5.0)
