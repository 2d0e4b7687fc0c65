"""Submitting: records become chunks, chunks become payloads in the store, one seal accepts the job."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from common.errors import StoreUnavailable, UsageError
from common.jobs import Written
from common.records import JobSpec
from common.settings import Settings
from producer.queue_connection import Connection
from producer.submit.chunk_source import Digest, Piece, Supply
from producer.submit.redis_capacity import MemoryEstimate


@dataclass(slots=True)
class Totals:
    """What was read so far."""

    records: int = 0
    chunks: int = 0
    bytes: int = 0  #: of text
    bad: int = 0  #: records that could not be read

    def add(self, piece: Piece) -> None:
        """Count one chunk."""
        self.records += piece.records
        self.chunks += 1
        self.bytes += piece.text_bytes
        self.bad += piece.bad


def check_size(totals: Totals, settings: Settings) -> None:
    """Check that a job is not too large.

    Raises:
        UsageError: it has more records or more bytes than one job may have.
    """
    for found, most, what, name in (
        (totals.records, settings.max_job_records, "records", "HUGQUEUE_MAX_JOB_RECORDS"),
        (totals.bytes, settings.max_job_bytes, "bytes of text", "HUGQUEUE_MAX_JOB_BYTES"),
    ):
        if found > most:
            raise UsageError(
                f"The input is larger than one job may be: more than {most:,} {what} ({name}). "
                f"Split it into several jobs, or raise {name} if Redis has room for it. Nothing was submitted."
            )


def submit(
    connection: Connection,
    spec: JobSpec,
    supply: Supply,
    on_chunk: Callable[[Totals], None],
) -> Totals:
    """Write all chunks of a job, accept it, and send its first tickets; return what was read.

    Holds one chunk in memory, whatever the size of the input. If anything goes wrong before the job is accepted,
    nothing of it stays.

    Raises:
        StoreUnavailable: Redis is away or full.
        UsageError: the input cannot be read to its end, or is larger than one job may be.
        NotSubmitting: the job was given up or cancelled meanwhile.
    """
    totals = Totals()
    with connection.errors():
        connection.store.create(spec)
    with taken_back(connection, spec.id):
        write_chunks(connection, spec, supply, totals, on_chunk)
    connection.send_tickets(spec)
    return totals


def write_chunks(
    connection: Connection,
    spec: JobSpec,
    supply: Supply,
    totals: Totals,
    on_chunk: Callable[[Totals], None],
    *,
    producer: str = "",
    digest: Digest | None = None,
) -> None:
    """Write the chunks that are missing of a job that was begun, and accept it.

    Args:
        connection: to its queue.
        spec: the job.
        supply: has what comes after what `totals` has.
        totals: what is written so far; goes on with each chunk.
        on_chunk: gets it.
        producer: the token of who submits it, where there is one.
        digest: of all records so far, where it is to be noted with each chunk.

    Raises:
        JobTaken: another producer has taken over since.
        UsageError: the input cannot be read to its end, or is larger than one job may be or than Redis has room for;
            another job writes to the same directory; or the job was cancelled.
    """
    _check_alone(connection, spec)
    payloads = connection.store.payloads(spec)
    memory = MemoryEstimate(spec, supply, connection.free_memory(), begun=totals.chunks > 0)
    with seen(connection, spec.id):
        for piece in supply.pieces():
            number = totals.chunks
            totals.add(piece)
            check_size(totals, connection.settings)
            payload = piece.encode()
            memory.add(piece, payload)
            written = None if digest is None else Written(totals.records, totals.chunks, digest.add(piece))
            with connection.errors():
                payloads.add_records(number, payload, producer, written)
            on_chunk(totals)
    with connection.errors():
        connection.ledger.seal(spec.id, totals.chunks, totals.records, producer)


def _check_alone(connection: Connection, spec: JobSpec) -> None:
    """Check that no other job writes its parts where this one will; it is begun, so that another one sees it."""
    if spec.output is None:
        return
    for job in connection.unfinished():
        if job.id != spec.id and job.spec.output and job.spec.output.address == spec.output.address:
            raise UsageError(f"{spec.output.address} is being written by job {job.id}. Name another place.")


@contextlib.contextmanager
def seen(connection: Connection, job_id: str) -> Iterator[None]:
    """Note that the producer lives as long as the block runs: records may come slowly, out of a pipe."""
    over = threading.Event()

    def note() -> None:
        while not over.wait(connection.settings.producer_ttl / 4):
            with contextlib.suppress(redis.RedisError):  # the next chunk says what is wrong
                connection.store.note(job_id, "producer_seen", str(connection.store.now()))

    thread = threading.Thread(target=note, name="seen", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()  # a note under way changes nothing any more; with Redis away it would be waited for


@contextlib.contextmanager
def taken_back(connection: Connection, job_id: str) -> Iterator[None]:
    """Take a job back if the block that submits it raises: nothing of it stays.

    Raises:
        StoreUnavailable: Redis went away; the message says what becomes of the job.
    """
    try:
        yield
    except BaseException as error:
        if not _forget(connection, job_id) and isinstance(error, StoreUnavailable):
            raise StoreUnavailable(
                f"{error} What was sent of job {job_id} is cleared away when Redis is back, unless that was all of it "
                f"and the job is accepted: `producer status {job_id}` says so."
            ) from error
        raise


def _forget(connection: Connection, job_id: str) -> bool:
    """Delete a job that was not accepted; return whether that came about: the reaper gives it up otherwise."""
    try:
        connection.check()  # one quick try: this command is to end
        connection.store.delete(job_id)
    except (StoreUnavailable, redis.RedisError):
        return False
    return True
