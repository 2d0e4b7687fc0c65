"""Submitting under an idempotency key: once, whatever dies, and never twice.

The first command that comes with a key begins the job. Another one waits until it is accepted, and goes on where it
stopped if its producer fell silent. The input is read again from its beginning then, and what is written already is
compared with it and left as it is.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import redis

from common.errors import HugqueueError, JobTaken, StoreUnavailable, UsageError
from common.jobs import Job, JobSpec, JobStatus, Written
from common.queue.idempotency import Claim
from common.tasks import find_task
from producer.outputs.targets import check_target
from producer.queue_connection import POLL_SECONDS, QueueConnection
from producer.submit.chunk_source import ChunkSource, Digest
from producer.submit.upload import Totals, write_chunks

#: What two submits of one job may differ in.
_FREE = ("id", "created_at", "inputs")


class _InputDiffers(UsageError):
    """Raised when the records are not those that were written before."""


def submit_once(
    connection: QueueConnection,
    spec: JobSpec,
    key: str,
    supply: ChunkSource,
    on_chunk: Callable[[Totals], None],
    notify: Callable[[str], None],
) -> tuple[str, Totals | None]:
    """Submit a job unless the key stands for one already, whose submitting goes on then where it stopped.

    If the input turns out to be unusable nothing stays. Whatever else goes wrong, what is written waits for the next
    one with the key.

    Returns:
        The id of the job that the key stands for, and what was read; None where others have submitted it.

    Raises:
        StoreUnavailable: Redis is away or full.
        UsageError: the key stands for a job of other options or records; or as for `submit`.
    """
    claim = Claim(key, supply.head())
    job_id, written = _claim(connection, spec, claim, notify)
    if written is None:
        return job_id, None
    totals, digest, ours = Totals(), Digest(), replace(spec, id=job_id)
    try:
        with _kept_for_the_next(connection, job_id, claim):
            if spec.output is not None:
                check_target(spec.output, find_task(spec.task))
            _pass_over(supply, written, totals, digest, job_id)
            write_chunks(connection, ours, supply, totals, on_chunk, producer=claim.producer, digest=digest)
    except JobTaken as error:
        notify(f"{error} Waiting until it is accepted.")
        _await_acceptance(connection, job_id)
        return job_id, None
    connection.send_tickets(connection.load_job(job_id).spec)
    return job_id, totals


def _claim(
    connection: QueueConnection, spec: JobSpec, claim: Claim, notify: Callable[[str], None]
) -> tuple[str, Written | None]:
    """Return the job of the key, and what is written of it once it is ours to go on with; None if it is accepted."""
    while True:
        with connection.errors():
            job_id = connection.claims.begin(spec, claim)
            if job_id != spec.id:
                _check_same(connection, job_id, spec, claim)
        answer = _take(connection, job_id, claim, notify)
        if isinstance(answer, Written):
            if answer.records:
                notify(f"Job {job_id} was cut off after {answer.records:,} records; going on from there.")
            return job_id, answer
        if answer == "accepted":
            notify(f"The idempotency key {claim.key!r} stands for job {job_id}: {connection.load_job(job_id).status}.")
            return job_id, None


def _take(connection: QueueConnection, job_id: str, claim: Claim, notify: Callable[[str], None]) -> Written | str:
    """Return what is written once nobody else submits the job, or what else became of it: `accepted`, `unknown`."""
    silence, told = connection.settings.producer_ttl / 2, False
    while True:
        answer = connection.retry_while_unavailable(lambda: connection.claims.take(job_id, claim, silence))
        if answer != "busy":
            return answer
        if not told:
            notify(f"Another producer submits job {job_id} under this key; waiting for it.")
        told = True
        time.sleep(POLL_SECONDS)


def _check_same(connection: QueueConnection, job_id: str, spec: JobSpec, claim: Claim) -> None:
    theirs = connection.store.job(job_id).spec
    names = (field.name for field in fields(JobSpec) if field.name not in _FREE)
    differing = [name for name in names if getattr(theirs, name) != getattr(spec, name)]
    what = ""
    if differing:
        name = differing[0]
        what = f"whose {name} is {getattr(theirs, name)!r}, not {getattr(spec, name)!r}"
    elif connection.claims.head(job_id) != claim.head:
        what = "which has another input: the first records differ"
    if what:
        raise UsageError(
            f"The idempotency key {claim.key!r} stands for job {job_id}, {what}. Submit under another key, or forget "
            f"that job with `producer delete {job_id}`."
        )


def _pass_over(supply: ChunkSource, written: Written, totals: Totals, digest: Digest, job_id: str) -> None:
    """Read what is written already, and see that it is the same."""
    found = ""
    while totals.records < written.records:
        content = supply.take(written.records - totals.records)
        if content is None:
            break
        totals.add(content)
        found = digest.add(content)
    totals.chunks = written.chunks
    if found != written.digest:
        raise _InputDiffers(
            f"Job {job_id} cannot be gone on with: its first {written.records:,} records are written already, and some "
            f"are not those of this input. Submit under another key, or `producer delete --force {job_id}` first."
        )


@contextlib.contextmanager
def _kept_for_the_next(connection: QueueConnection, job_id: str, claim: Claim) -> Iterator[None]:
    """Let go of the job where the block fails; if its input is at fault, take it back."""
    try:
        yield
    except JobTaken:
        raise
    except BaseException as error:
        with contextlib.suppress(redis.RedisError):  # the next one waits for a while then
            if isinstance(error, UsageError) and not isinstance(error, _InputDiffers):
                connection.store.delete(job_id, producer=claim.producer)
            else:
                connection.claims.release(job_id, claim)
        if isinstance(error, StoreUnavailable):
            raise StoreUnavailable(
                f"{error} What was sent of job {job_id} stays: the same command goes on with it, or finds it accepted."
            ) from error
        raise


def _await_acceptance(connection: QueueConnection, job_id: str) -> None:
    def look() -> Job:
        return connection.load_job(job_id)

    while (job := connection.retry_while_unavailable(look)).status is JobStatus.SUBMITTING:
        time.sleep(POLL_SECONDS)
    if job.failure is not None and job.failure.code == "producer_died":
        raise HugqueueError(f"Job {job_id} was cut off again; the same command goes on with it.")
