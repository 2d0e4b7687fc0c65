"""One turn: a ticket becomes a lease, the lease's records become outcomes, the outcomes are committed.

Whatever happens, a turn ends with a sentence for Flower and the log, and never raises what would kill the worker.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import redis
from kombu.exceptions import OperationalError

from common.connection import is_passing
from common.errors import ModelError, PayloadError, UnknownJob, UsageError, WorkerError
from common.heartbeats import living, serving, ticket_target
from common.jobs import Job
from common.ledger import MIN_TICKETS, Lease
from common.payloads import failed_positions
from common.queue import send_tickets
from common.values import Failure, JobSpec
from workers.device_client import Caution, ChunkResult
from workers.leases import HeldLease
from workers.room import Room
from workers.runners.base import Cancelled

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WORKERS_DIED = "Chunk {} was begun {} times and never ended: its workers died, or were stopped by force."

#: Leases of one chunk in one round after which its records are run one by one: whole workers died over it.
CAUTIOUS_AFTER = 3
#: Leases of one chunk in one round after which its job fails.
MOST_ATTEMPTS = 10
#: Why this worker cannot serve a job, now or soon; another one may.
_ONLY_HERE = frozenset({"no_memory", "missing_library", "model_not_allowed"})
#: A record that was about to run alone at so many deaths of whole workers is not run again.
_DEATHS = 2


def take_turn(room: Room, job_id: str, ticket: str) -> str:
    """Do one chunk of the job that the ticket names; return what happened, in words."""
    try:
        return _take_turn(room, job_id, ticket)
    except Exception as error:  # the boundary: a MemoryError alone would end the whole Celery process
        # A lease that was held runs out now, and the chunk is opened again, ten times at most.
        logger.exception("a turn at job %s", job_id)
        return f"given up: {type(error).__name__}: {error}"


def _take_turn(room: Room, job_id: str, ticket: str) -> str:
    try:
        job = room.store.job(job_id)
        if job.status.finished:
            return f"void: the job is {job.status}"
        if room.refusals.holds(job_id) or room.stopping.is_set():
            return _pass_on(room, job.spec, ticket)
        lease = room.ledger.lease(job_id, ticket, room.name, _target(room, job))
        room.refusals.lift(job_id)
    except UnknownJob:
        return "void: there is no such job"
    except redis.RedisError as error:
        return f"void: no lease ({error})"  # the reaper sends another ticket
    if lease is None:
        return "void: nothing left to do"
    if lease.next_ticket:
        _send(room, job.spec, lease.next_ticket)
    with room.leases.hold(lease) as held:
        return _do(room, job, held)


def _do(room: Room, job: Job, held: HeldLease) -> str:
    try:
        return _work(room, job, held)
    except Cancelled:
        return _give_back(room, held.lease, f"given back: {held.reason}")
    except redis.RedisError as error:  # one that waiting does not mend
        room.refusals.pause(job.id, held.lease.attempt)
        return _give_back(room, held.lease, f"given back: {error}", tried=True)


def _work(room: Room, job: Job, held: HeldLease) -> str:
    lease = held.lease
    if lease.attempt > MOST_ATTEMPTS:
        return _fail(room, held, Failure("chunk_keeps_failing", _WORKERS_DIED.format(lease.chunk, MOST_ATTEMPTS)))
    try:
        result = _compute(room, job, held)
    except (ModelError, WorkerError, PayloadError, MemoryError, OSError) as error:
        return _not_computed(room, job, held, error)
    return _commit(room, job, held, result)


def _not_computed(room: Room, job: Job, held: HeldLease, error: Exception) -> str:
    lease = held.lease
    if isinstance(error, PayloadError):
        return _fail(room, held, Failure("broken_payload", f"Chunk {lease.chunk} cannot be read: {error}"))
    if isinstance(error, ModelError):
        failure = Failure(error.code, error.message)
        if error.code in _ONLY_HERE:
            return _refuse_for_good(room, job, held, failure)
        return _fail(room, held, failure)
    if not isinstance(error, WorkerError):
        logger.exception("chunk %d of job %s: this worker's own fault", lease.chunk, lease.job_id)
        error = WorkerError("worker_fault", f"{type(error).__name__}: {error}")
    return _refuse(room, job, held, error)


def _compute(room: Room, job: Job, held: HeldLease) -> ChunkResult:
    if job.spec.training is not None:
        return room.tuner.run(job, held, room.stopping)
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
        caution=_caution(room, held) if lease.attempt > CAUTIOUS_AFTER else None,
    )


def _caution(room: Room, held: HeldLease) -> Caution:
    """Return what is known of the records that ran alone when whole workers died over this chunk."""
    lease = held.lease
    earlier = _patiently(held, lambda: room.ledger.alone(lease))
    failure = Failure("worker_died", f"Whole workers died {_DEATHS} times while it ran alone.")
    condemned = {position: failure for position, deaths in Counter(earlier).items() if deaths >= _DEATHS}

    def on_alone(position: int) -> None:
        _patiently(held, lambda: room.ledger.note_alone(lease, [*earlier, position]))

    return Caution(condemned, on_alone)


def _commit(room: Room, job: Job, held: HeldLease, result: ChunkResult) -> str:
    lease, counts = held.lease, result.counts
    _patiently(held, lambda: room.store.put_outcomes(job.id, lease.chunk, lease.version, result.payload))
    most_failed = job.spec.most_failed(job.records or 0)
    answer = _patiently(held, lambda: room.ledger.commit(lease, counts, result.facts, most_failed))
    # Refused, and yet counted: the first answer was lost on its way, and this one is to the same commit once more.
    counted = answer == "committed" or lease.version in _patiently(held, lambda: room.store.layers(job.id, lease.chunk))
    if result.settle is not None:
        result.settle(counted)
    if not counted:
        room.store.drop_outcomes(job.id, lease.chunk, lease.version)
        return f"chunk {lease.chunk}: dropped, {answer}"
    room.meter.add(counts.done)
    rate = counts.done / result.seconds if result.seconds else 0.0
    failed = f", {counts.failed} failed" if counts.failed else ""
    return f"chunk {lease.chunk + 1} of {job.chunks}: {counts.succeeded} done{failed}, {rate:,.0f} records/s"


def _fail(room: Room, held: HeldLease, failure: Failure) -> str:
    job_id = held.lease.job_id
    _patiently(held, lambda: room.ledger.fail(job_id, failure))
    logger.error("job %s failed: %s: %s", job_id, failure.code, failure.message)
    return f"job failed: {failure.code}: {failure.message}"


def _refuse(room: Room, job: Job, held: HeldLease, error: WorkerError) -> str:
    """Give the chunk back, for another worker or for later; end the job where there is neither."""
    if error.code in _ONLY_HERE:
        failure = Failure("no_worker_fits", f"No live worker can serve this job: {error.message}")
        return _refuse_for_good(room, job, held, failure)
    if error.code == "device_process_dies":  # no fault of the chunk; if it stays so, the worker ends (`workers.pulse`)
        room.refusals.pause(job.id, held.lease.attempt)
        return _give_back(room, held.lease, f"given back: {error.message}")
    if held.lease.attempt >= MOST_ATTEMPTS:
        return _fail(room, held, Failure(error.code, f"{error.message} (After {MOST_ATTEMPTS} tries.)"))
    room.refusals.pause(job.id, held.lease.attempt)
    return _give_back(room, held.lease, f"to be tried again: {error.message}", tried=True)


def _refuse_for_good(room: Room, job: Job, held: HeldLease, failure: Failure) -> str:
    """Give the chunk back for another worker; end the job when no live one is left that has not refused it."""
    refused = room.refusals.add(job.id, failure.message)
    workers = {worker.name for worker in serving(living(room.store.client), job.spec.queue)}
    if room.name in workers and workers <= refused:  # after an outage nobody may seem to live, not even this one
        return _fail(room, held, failure)
    return _give_back(room, held.lease, f"refused: {failure.message}")


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
    except (OperationalError, redis.RedisError, UsageError) as error:
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
