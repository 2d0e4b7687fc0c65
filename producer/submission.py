"""Submitting: records become chunks, chunks become payloads in the store, one seal accepts the job."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import redis

from common.claims import Written
from common.encoder import to_json
from common.errors import StoreUnavailable, UsageError
from common.payloads import encode_records
from common.settings import Settings
from common.values import JobSpec, Record
from producer.connection import Connection

#: Bytes of text in one chunk at most; a chunk passes through Redis and two processes whole.
CHUNK_BYTES = 1024 * 1024
#: The same for chunks of files: a batch of images takes more than a batch of texts.
FILE_CHUNK_BYTES = 16 * CHUNK_BYTES


@dataclass(slots=True)
class Totals:
    """What was read so far."""

    records: int = 0
    chunks: int = 0
    bytes: int = 0  #: of text
    bad: int = 0  #: records that could not be read

    def add(self, chunk: list[Record]) -> None:
        """Count one chunk."""
        self.records += len(chunk)
        self.chunks += 1
        self.bytes += sum(map(size, chunk))
        self.bad += sum(record.failure is not None for record in chunk)


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


def size(record: Record) -> int:
    """Return about how many bytes the record holds, of text and of its file."""
    if record.blob is not None:
        return len(record.blob)
    if record.input is None:
        return 0
    text = record.input if isinstance(record.input, str) else repr(record.input)
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


class RecordsDigest:
    """A running digest of records, however they are cut: by it, one input is known from another."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add_all(self, records: Iterable[Record]) -> str:
        """Add records; return the digest of all so far, in hexadecimal."""
        for record in records:
            code = record.failure.code if record.failure else None
            self._hash.update(to_json([record.id, record.input, code]).encode() + b"\n" + (record.blob or b""))
        return self._hash.hexdigest()


def cut_chunks(records: Iterable[Record], most: int) -> Iterator[list[Record]]:
    """Yield chunks of at most `most` records and `CHUNK_BYTES` bytes (of files more), at least one record each."""
    chunk: list[Record] = []
    held = 0
    for record in records:
        weight = size(record)
        most_bytes = CHUNK_BYTES if record.blob is None else FILE_CHUNK_BYTES
        if chunk and (len(chunk) >= most or held + weight > most_bytes):
            yield chunk
            chunk, held = [], 0
        chunk.append(record)
        held += weight
    if chunk:
        yield chunk


def submit(
    connection: Connection,
    spec: JobSpec,
    records: Iterable[Record],
    chunk_records: int,
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
        write_chunks(connection, spec.id, cut_chunks(records, chunk_records), totals, on_chunk)
    connection.send_tickets(spec)
    return totals


def write_chunks(
    connection: Connection,
    job_id: str,
    chunks: Iterable[list[Record]],
    totals: Totals,
    on_chunk: Callable[[Totals], None],
    *,
    producer: str = "",
    digest: RecordsDigest | None = None,
) -> None:
    """Write the chunks that are missing of a job that was begun, and accept it.

    Args:
        connection: to its queue.
        job_id: the job.
        chunks: those that come after what `totals` has.
        totals: what is written so far; goes on with each chunk.
        on_chunk: gets it.
        producer: the token of who submits it, where there is one.
        digest: of all records so far, where it is to be noted with each chunk.

    Raises:
        JobTaken: another producer has taken over since.
        UsageError: the input cannot be read to its end, or is larger than one job may be; or the job was cancelled.
    """
    with seen(connection, job_id):
        for chunk in chunks:
            number = totals.chunks
            totals.add(chunk)
            check_size(totals, connection.settings)
            payload = encode_records(chunk)
            written = None if digest is None else Written(totals.records, totals.chunks, digest.add_all(chunk))
            with connection.errors():
                connection.store.add_chunk(job_id, number, payload, producer, written)
            on_chunk(totals)
    with connection.errors():
        connection.ledger.seal(job_id, totals.chunks, totals.records, producer)


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
