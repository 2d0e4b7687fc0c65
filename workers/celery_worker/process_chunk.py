"""Processing one ticket: it is exchanged for a lease on a chunk, the chunk is run, its outcomes are committed.

Celery's part of a ticket costs more than a small chunk, so a ticket goes on with the job's next chunks until its time
slice is over. It always ends with a sentence for Flower and the log, and no error stops the worker. If an error ended
the ticket or its job, the sentence is raised as an exception, so that Flower counts the ticket as failed.
"""

import logging
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import redis

from common.errors import Cancelled, ModelError, PayloadError, StorageError, UnknownJob, WorkerError
from common.jobs import Job, JobSpec, JobStatus
from common.payloads.codec import failures_by_code, positions_to_retry
from common.payloads.job_payloads import JobPayloads
from common.queue.heartbeats import live_workers, serving, target_tickets
from common.queue.ledger import MAX_TICKETS, MIN_TICKETS, Lease
from common.queue.output_commit import finish_commit
from common.records import Counts, Failure
from common.reporting import Reporter
from common.tracing import Value, current, job_attributes, span
from workers.celery_worker.context import WorkerContext
from workers.celery_worker.isolation_journal import ISOLATE_AFTER, IsolationJournal
from workers.celery_worker.vector_precision import VectorPrecision
from workers.device.protocol import ChunkResult
from workers.disk_space import PERMANENT_ERRNOS
from workers.leases import HeldLease, retry_until_cancelled

logger = logging.getLogger(__name__)

#: For so many seconds a ticket goes on with chunks of its job. Other jobs wait for it as for one chunk of that length.
SLICE_SECONDS = 0.5
#: Leases of one chunk in one round that ended in the death of their workers without progress; then its job fails.
MAX_ATTEMPTS = 10
#: Transient faults (the Hub, a full disk) of one chunk in one round; then its job fails.
MAX_TRIES = 10
#: Seconds for which outcomes wait for files that cannot be written; then the chunk runs again, later.
FILES_RETRY_SECONDS = 30.0
#: Why this worker cannot serve a job that another one may.
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
    """Raised by a ticket that an error ended, or that ended its job with one."""

    def __repr__(self) -> str:
        return str(self)  # what Flower shows


def run_ticket(context: WorkerContext, job_id: str, ticket: str) -> str:
    """Run chunks of the job that the ticket names, for one time slice; return a description of what happened.

    Raises:
        TicketFailed: an error ended it, or its job.
    """
    try:
        return _run_ticket(context, job_id, ticket)
    except TicketFailed:
        raise
    except Exception as error:  # the boundary: a MemoryError alone would end the whole Celery process
        # A lease that was held runs out now, and the chunk is opened again, ten times at most.
        logger.exception("processing a ticket of job %s failed", job_id)
        raise TicketFailed(f"abandoned: {type(error).__name__}: {error}") from None


def _run_ticket(context: WorkerContext, job_id: str, ticket: str) -> str:
    end = time.monotonic() + SLICE_SECONDS
    try:
        job = context.store.job(job_id)
        if job.status.finished:
            return f"void: the job is {job.status}"
        if not _should_run(context, job):
            return _requeue(context, job.spec, ticket)
        lease = _lease(context, job.spec, ticket, end)
    except UnknownJob:
        return "void: there is no such job"
    except (redis.RedisError, Cancelled) as error:
        return f"void: no lease ({error})"  # the reaper sends another ticket
    report = _TicketReport(job.chunks or 0)
    while lease is not None:
        report.add(_run_chunk(context, job, lease, ticket))
        lease = _next_lease(context, job, lease, end)
    return str(report)


def _lease(context: WorkerContext, spec: JobSpec, ticket: str, end: float) -> Lease | None:
    """Return a lease on the job's next open chunk, None if there is none or the ticket is void.

    The job's next ticket is sent when the slice is over, unless `_next_lease` uses it before.
    """
    # Repeated until there is an answer: a lease whose answer was lost would look like a worker's death.
    call, target = uuid.uuid4(), _target_tickets(context, spec)
    lease = retry_until_cancelled(
        lambda: context.ledger.lease(spec.id, ticket, context.name, target, call=call), context.stopping
    )
    if lease is not None and lease.next_ticket:
        context.tickets.send_later(spec, lease.next_ticket, max(0.0, end - time.monotonic()))
    return lease


def _next_lease(context: WorkerContext, job: Job, lease: Lease, end: float) -> Lease | None:
    """Return a lease on the chunk with which the slot goes on after that of `lease`; None if it is not to go on."""
    ticket = lease.next_ticket
    if ticket is None or not context.tickets.recall(ticket):
        return None
    try:
        if time.monotonic() < end and _should_run(context, job):
            return _lease(context, job.spec, ticket, end)
    except (redis.RedisError, Cancelled) as error:
        logger.info("job %s is not continued by this ticket: %s", job.id, error)
    else:
        context.tickets.send(job.spec, [ticket])
    return None


def _run_chunk(context: WorkerContext, job: Job, lease: Lease, ticket: str) -> "_Committed | str":
    """Run a leased chunk; return what was committed, or else what happened. Raises `TicketFailed`."""
    attributes = {**job_attributes(job.spec, "process"), "messaging.message.id": ticket, "hugqueue.chunk": lease.chunk}
    attributes |= {"hugqueue.attempt": lease.attempt, "hugqueue.worker": context.name}
    with (
        span("hugqueue.chunk", attributes, kind="CONSUMER", parent=job.spec.traceparent),
        context.affinity.running(job.spec),
        context.leases.renewing(lease) as held,
    ):
        return _ChunkRun(context, job, held).run()


@dataclass(frozen=True, slots=True)
class _Committed:
    """A committed chunk."""

    number: int  #: as people count, from 1
    counts: Counts
    seconds: float  #: of computing


class _TicketReport:
    """What a ticket did, in words."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks  #: of the whole job
        self._committed: list[_Committed] = []
        self._others: list[str] = []

    def add(self, chunk: _Committed | str) -> None:
        """Add a chunk that was committed, or what else became of one."""
        if isinstance(chunk, str):
            self._others.append(chunk)
        else:
            self._committed.append(chunk)

    def __str__(self) -> str:
        return (
            "; ".join(([self._describe_committed()] if self._committed else []) + self._others)
            or "void: nothing left to do"
        )

    def _describe_committed(self) -> str:
        first, count = self._committed[0], len(self._committed)
        chunks = f"chunk {first.number}" if count == 1 else f"{count:,} chunks"
        succeeded = sum(chunk.counts.succeeded for chunk in self._committed)
        failed = sum(chunk.counts.failed for chunk in self._committed)
        seconds = sum(chunk.seconds for chunk in self._committed)
        rate = (succeeded + failed) / seconds if seconds else 0.0
        failures = f", {failed} failed" if failed else ""
        return f"{chunks} of {self._chunks}: {succeeded} done{failures}, {rate:,.0f} records/s"


def _should_run(context: WorkerContext, job: Job) -> bool:
    """Whether this worker takes the chunk, and now. A ticket may have come by another queue than its job's."""
    if job.spec.queue not in context.queues or context.stopping.is_cancelled:
        return False
    return not context.refusals.is_skipped(job.id, job.round) and context.affinity.should_run(job.spec)


def _requeue(context: WorkerContext, spec: JobSpec, ticket: str) -> str:
    """Leave the chunk to another worker, or for later: the ticket goes to the tail of its queue, if it still counts."""
    if not context.ledger.has_ticket(spec.id, ticket):
        return "void: not one of the job's tickets"
    context.tickets.requeue(spec, ticket)
    return "requeued"


def _target_tickets(context: WorkerContext, spec: JobSpec) -> int:
    return target_tickets(context.live_workers.now(), spec.queue, MIN_TICKETS, MAX_TICKETS)


def _result_attributes(result: ChunkResult) -> dict[str, Value]:
    """Return what a span tells of a chunk's outcomes."""
    effort = result.effort
    seconds = {"tokenize": effort.tokenize, "forward": effort.forward, "encode": effort.encode}
    return {
        "messaging.batch.message_count": result.counts.done,
        "hugqueue.records.failed": result.counts.failed,
        "hugqueue.tokens": effort.tokens,
        **{f"hugqueue.{stage}.seconds": round(value, 6) for stage, value in seconds.items()},
    }


class _JobReporter(Reporter):
    """Writes the stages of a job where `producer status` shows them."""

    def __init__(self, context: WorkerContext, job_id: str) -> None:
        self._context = context
        self._job_id = job_id

    def stage(self, text: str) -> None:
        try:
            self._context.store.set_field(self._job_id, "stage", text)
        except redis.RedisError as error:
            logger.info("stage of job %s not noted: %s", self._job_id, error)


class _ChunkRun:
    """The work on one leased chunk."""

    def __init__(self, context: WorkerContext, job: Job, held: HeldLease) -> None:
        self._context = context
        self._job = job
        self._held = held
        self._lease = held.lease
        self._title = f"chunk {held.lease.chunk + 1}"
        self._ranges_id: str | None = None  #: see `VectorPrecision`

    def run(self) -> _Committed | str:
        """Run the chunk and commit it; return what happened otherwise. Raises `TicketFailed`."""
        try:
            self._held.retry(lambda: self._context.refusals.withdraw(self._job.id))
            return self._compute_and_commit()
        except Cancelled:
            return self._release(f"released: {self._held.cancel_token.reason}")
        except redis.RedisError as error:  # one that waiting does not fix
            self._schedule_retry(Failure("chunk_keeps_failing", f"Chunk {self._lease.chunk + 1}: {error}"))

    def _compute_and_commit(self) -> _Committed | str:
        number = self._lease.chunk + 1
        if self._lease.attempt > MAX_ATTEMPTS:
            text = f"Chunk {number} was started {MAX_ATTEMPTS} times and never ended: its workers died or were killed."
            self._fail_job(Failure("chunk_keeps_failing", text))
        try:
            payloads = self._context.store.payloads(self._job.spec)
            result = self._train() if self._job.spec.training is not None else self._infer(payloads)
            current().note(_result_attributes(result))
            with span("hugqueue.commit", {"hugqueue.bytes": len(result.payload)}):
                return self._commit(payloads, result)
        except PayloadError as error:
            self._fail_job(Failure("broken_payload", f"Chunk {number} cannot be read: {error}"))
        except ModelError as error:
            failure = Failure(error.code, error.message)
            if error.code not in _WORKER_SPECIFIC:
                self._fail_job(failure)
            return self._refuse_here(failure)
        except WorkerError as error:
            return self._handle_worker_error(error)
        except (MemoryError, OSError) as error:
            logger.exception("%s of job %s: internal worker error", self._title, self._job.id)
            failure = Failure.from_exception("worker_fault", error)
            if isinstance(error, OSError) and error.errno in PERMANENT_ERRNOS:
                return self._refuse_here(failure)
            self._schedule_retry(failure)

    def _infer(self, payloads: JobPayloads) -> ChunkResult:
        lease, held = self._lease, self._held
        payload = self._records(payloads, lease.chunk)
        earlier = self._earlier_outcomes(payloads) if lease.round else []
        journal = IsolationJournal(self._context.ledger, held) if lease.attempt > ISOLATE_AFTER else None
        result = self._context.device.run(
            self._job.spec,
            payload,
            positions_to_retry(earlier) if earlier else None,
            cancel_token=held.cancel_token,
            reporter=_JobReporter(self._context, self._job.id),
            isolation=journal.policy() if journal else None,
        )
        if journal:
            journal.end()
        precision = VectorPrecision(self._job, held, self._context.ledger, partial(self._run_other_chunk, payloads))
        result = precision.convert(result)
        self._ranges_id = precision.ranges_id
        return result

    def _records(self, payloads: JobPayloads, chunk: int) -> bytes:
        payload = self._held.retry(lambda: payloads.records(chunk))
        if payload is None:
            raise PayloadError("its records are not in the store")
        return payload

    def _run_other_chunk(self, payloads: JobPayloads, chunk: int) -> bytes:
        """Return the outcomes of a chunk that is not committed here: for the ranges of its vectors."""
        found = self._context.device.run(
            self._job.spec,
            self._records(payloads, chunk),
            None,
            cancel_token=self._held.cancel_token,
            reporter=_JobReporter(self._context, self._job.id),
        )
        return found.payload

    def _earlier_outcomes(self, payloads: JobPayloads) -> list[bytes]:
        """Return the outcomes of earlier rounds; none if some are lost, and then all records run again."""
        lease = self._lease
        found = self._held.retry(lambda: payloads.outcomes(lease.chunk))
        earlier = [payload for payload in found if payload is not None]
        if len(earlier) == len(found):
            return earlier
        logger.warning("%s of job %s has lost its outcomes and runs again", self._title, self._job.id)
        self._held.retry(lambda: self._context.ledger.forget_commits(lease.job_id, lease.round, [lease.chunk]))
        return []

    def _train(self) -> ChunkResult:
        def on_checkpoint(steps: int) -> None:
            try:
                self._context.ledger.note_progress(self._lease, steps)
            except redis.RedisError as error:  # the next checkpoint says more
                logger.info("checkpoint of job %s at step %d not noted: %s", self._job.id, steps, error)

        with span("hugqueue.finetune", {}):
            return self._context.tuner.run(self._job, self._held, self._context.stopping, on_checkpoint)

    def _commit(self, payloads: JobPayloads, result: ChunkResult) -> _Committed | str:
        context, lease, held, counts = self._context, self._lease, self._held, result.counts
        begun = time.monotonic()
        held.retry(
            lambda: payloads.write_outcomes(lease.chunk, lease.version, result.payload), files=FILES_RETRY_SECONDS
        )
        max_failed = self._job.spec.max_failed(self._job.records or 0)
        codes = failures_by_code(result.payload) if counts.failed else {}
        commit = partial(context.ledger.commit, lease, counts, result.run_info, max_failed, self._ranges_id)
        answer = held.retry(lambda: commit(seconds=result.seconds, codes=codes))
        # Refused, and yet counted: the first answer was lost, and this one is to the same commit once more.
        counted = answer == "committed" or lease.version in held.retry(lambda: payloads.versions(lease.chunk))
        if self._job.spec.training is not None:
            context.tuner.promote_or_delete(lease, counted)
        if not counted:
            self._delete_outcomes(payloads)
            return f"{self._title}: dropped, {answer}"
        finish_commit(context.store, context.ledger, payloads, lease)
        context.heartbeat.meter.add(counts.done, result.effort, time.monotonic() - begun)
        if max_failed is not None and counts.failed:
            self._check_still_running()
        return _Committed(lease.chunk + 1, counts, result.seconds)

    def _check_still_running(self) -> None:
        """Raise `TicketFailed` if this commit had one failed record too many."""
        job = self._held.retry(lambda: self._context.store.job(self._job.id))
        if job.status is JobStatus.FAILED and job.failure:
            raise TicketFailed(f"job failed: {job.failure.code}: {job.failure.message}")

    def _delete_outcomes(self, payloads: JobPayloads) -> None:
        try:
            self._held.retry(lambda: payloads.delete_outcomes(self._lease.chunk, self._lease.version))
        except StorageError as error:  # they are not read; another worker has done this chunk
            logger.warning("outcomes of %s of job %s not deleted: %s", self._title, self._job.id, error)

    # What becomes of a chunk that is not done

    def _handle_worker_error(self, error: WorkerError) -> str:
        """Release the chunk, for another worker or for later; end the job if there is neither."""
        if error.code == "device_process_dies":  # not the chunk's fault; the worker ends if it stays so (heartbeat.py)
            self._context.refusals.pause(self._lease)
            raise TicketFailed(self._release(f"released: {error.message}"))
        if error.code not in _WORKER_SPECIFIC:
            self._schedule_retry(Failure(error.code, error.message))
        return self._refuse_here(Failure("no_worker_fits", f"No live worker can serve this job: {error.message}"))

    def _fail_job(self, failure: Failure) -> NoReturn:
        self._held.retry(lambda: self._context.ledger.fail(self._job.id, failure))
        logger.error("job %s failed: %s: %s", self._job.id, failure.code, failure.message)
        raise TicketFailed(f"job failed: {failure.code}: {failure.message}")

    def _schedule_retry(self, failure: Failure) -> NoReturn:
        """Release the chunk for later, after a transient fault; end the job after too many of them."""
        if self._lease.tries + 1 >= MAX_TRIES:
            self._fail_job(Failure(failure.code, f"{failure.message} (After {MAX_TRIES} tries.)"))
        rest = self._context.refusals.pause(self._lease)
        raise TicketFailed(self._release(f"to be retried: {failure.message}", rest=rest))

    def _refuse_here(self, failure: Failure) -> str:
        """Release the chunk for another worker; end the job if all live workers have refused it."""
        refused = self._context.refusals.refuse(self._lease, failure.message)
        workers = {worker.name for worker in serving(live_workers(self._context.store.client), self._job.spec.queue)}
        if self._context.name in workers and workers <= refused:  # after an outage no worker may seem to live
            self._fail_job(failure)
        return self._release(f"refused: {failure.message}")

    def _release(self, text: str, *, rest: float | None = None) -> str:
        """Open the chunk again, and send a ticket that lets another worker take it at once, unless it rests first."""
        context, spec = self._context, self._job.spec
        try:
            context.ledger.release_chunk(self._lease, delay=rest)
            if rest is None:
                tickets = context.ledger.issue_tickets(spec.id, _target_tickets(context, spec))
                context.tickets.send(spec, tickets)
        except redis.RedisError as error:
            logger.warning(
                "the lease of %s of job %s could not be released and will expire: %s", self._title, self._job.id, error
            )
        logger.info("%s of job %s %s", self._title, self._job.id, text)
        return text
