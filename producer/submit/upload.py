"""Uploading a job: records become chunks, chunks become payloads, and then the job is accepted."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from common.errors import StoreUnavailable, UsageError
from common.jobs import JobSpec
from common.settings import Settings
from common.tasks import declared_output
from producer.outputs.targets import check_target
from producer.queue_connection import QueueConnection
from producer.submit.chunk_source import ChunkContent, ChunkSource
from producer.submit.redis_capacity import MemoryEstimate


@dataclass(slots=True)
class Totals:
    """Totals of the records that were read so far."""

    records: int = 0
    chunks: int = 0
    bytes: int = 0  #: of text
    bad: int = 0  #: records that could not be read

    def add(self, content: ChunkContent) -> None:
        """Count one chunk."""
        self.records += content.records
        self.chunks += 1
        self.bytes += content.text_bytes
        self.bad += content.bad


def check_size(totals: Totals, settings: Settings) -> None:
    """Check that a job is not too large.

    Raises:
        UsageError: it has more records or more bytes than one job may have.
    """
    for found, limit, what, name in (
        (totals.records, settings.max_job_records, "records", "HUGQUEUE_MAX_JOB_RECORDS"),
        (totals.bytes, settings.max_job_bytes, "bytes of text", "HUGQUEUE_MAX_JOB_BYTES"),
    ):
        if found > limit:
            raise UsageError(
                f"The input is larger than one job may be: more than {limit:,} {what} ({name}). "
                f"Split it into several jobs, or raise {name} if Redis has room for it. Nothing was submitted."
            )


def upload(
    connection: QueueConnection, spec: JobSpec, source: ChunkSource, on_chunk: Callable[[Totals], None]
) -> Totals:
    """Write all chunks of a created job, accept it, and send its first tickets; return what was read.

    Holds one chunk in memory at a time. If anything fails before the job is accepted, nothing of it stays.

    Raises:
        StoreUnavailable: Redis cannot be reached or is full.
        UsageError: The input cannot be read to its end, or is too large for one job or for Redis; or another job
            writes to the same directory.
        NotSubmitting: The job was abandoned or cancelled meanwhile.
    """
    totals = Totals()
    with rollback_on_error(connection, spec.id), producer_heartbeat(connection, spec.id):
        _check_output(connection, spec)
        payloads = connection.store.payloads(spec)
        memory = MemoryEstimate(spec, source.progress, connection.free_memory())
        for number, content in enumerate(source.chunks):
            totals.add(content)
            check_size(totals, connection.settings)
            payload, own = content.encode()
            memory.add(content, payload, own)
            with connection.errors():
                payloads.add_records(number, payload, own)
            on_chunk(totals)
        with connection.errors():
            connection.ledger.accept(spec.id, totals.chunks, totals.records)
    connection.send_tickets(spec)
    return totals


def _check_output(connection: QueueConnection, spec: JobSpec) -> None:
    """Check that nothing is where workers will write, and that no other job writes there.

    The job is begun already, so that another one sees it.
    """
    if spec.output is None:
        return
    check_target(spec.output, declared_output(spec))
    for job in connection.unfinished():
        if job.id != spec.id and job.spec.output and job.spec.output.location == spec.output.location:
            raise UsageError(f"{spec.output.location} is being written by job {job.id}. Name another location.")


@contextlib.contextmanager
def producer_heartbeat(connection: QueueConnection, job_id: str) -> Iterator[None]:
    """Keep noting that the producer is alive while the block runs: records may arrive slowly, from a pipe."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(connection.settings.producer_ttl / 4):
            with contextlib.suppress(redis.RedisError):  # the next chunk reports it
                connection.store.set_field(job_id, "producer_seen", str(connection.store.now()))

    thread = threading.Thread(target=beat, name="producer heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()  # not joined: if Redis is unavailable, its last note takes long


@contextlib.contextmanager
def rollback_on_error(connection: QueueConnection, job_id: str) -> Iterator[None]:
    """Delete a job if the block that submits it raises.

    Raises:
        StoreUnavailable: Redis became unavailable; the message says what happens to the job.
    """
    try:
        yield
    except BaseException as error:
        if not _try_delete(connection, job_id) and isinstance(error, StoreUnavailable):
            raise StoreUnavailable(
                f"{error} If job {job_id} is incomplete, a worker abandons it; if it is complete, it is accepted: "
                f"`producer status {job_id}` shows that."
            ) from error
        raise


def _try_delete(connection: QueueConnection, job_id: str) -> bool:
    """Delete a job that was not accepted; return whether that succeeded: otherwise a reaper abandons it."""
    try:
        connection.check()  # one quick attempt: this command is to end
        answer = connection.store.delete(job_id, "unaccepted")
    except (StoreUnavailable, redis.RedisError):
        return False
    return answer in ("deleted", "unknown")
