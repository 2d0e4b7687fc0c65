"""Idempotent submit: the first command with an idempotency key submits the job, all others get that job.

While the first command is submitting, others wait until its job is accepted. If it is cut off, its job is abandoned and
the next command with the key submits it again.
"""

import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial

from common.errors import UnknownJob, UsageError
from common.jobs import Job, JobSpec, JobStatus
from common.notifications import mask_notify_url
from producer.queue_connection import POLL_SECONDS, QueueConnection
from producer.submit.chunk_source import ChunkSource
from producer.submit.upload import Totals, upload

#: What two submits of one job may differ in.
_MAY_DIFFER = ("id", "created_at", "inputs", "after", "traceparent")


def submit_idempotently(
    connection: QueueConnection,
    spec: JobSpec,
    key: str | None,
    source: ChunkSource,
    on_chunk: Callable[[Totals], None],
    notify: Callable[[str], None],
) -> tuple[str, Totals | None]:
    """Submit a job, unless its idempotency key belongs to one already.

    Returns:
        The id of the job, and what was read; None if another command has submitted it.

    Raises:
        StoreUnavailable: Redis cannot be reached or is full.
        UsageError: The key belongs to a job with other options; or as for `upload`.
        NotSubmitting: The job was abandoned or cancelled meanwhile.
    """
    job = _begin_or_find(connection, spec, key, notify)
    if job is None:
        return spec.id, upload(connection, spec, source, on_chunk)
    notify(f"The idempotency key {key!r} belongs to job {job.id}: {job.status}.")
    return job.id, None


def _begin_or_find(
    connection: QueueConnection, spec: JobSpec, key: str | None, notify: Callable[[str], None]
) -> Job | None:
    """Create the job and return None, or wait until the job of the key is accepted and return that."""
    notified = False
    while True:
        with connection.errors():
            job_id = connection.store.create(spec, key)
        if job_id == spec.id:
            return None
        try:
            job = connection.retry_while_unavailable(partial(connection.load_job, job_id))
        except UnknownJob:  # deleted meanwhile: try again
            with connection.errors():
                if connection.store.exists(job_id):
                    raise UsageError(
                        f"The idempotency key {key!r} belongs to job {job_id}, which cannot be read. Use another key."
                    ) from None
        else:
            _check_same(job, spec, key)
            if job.status is not JobStatus.SUBMITTING:
                if job.failure is None or job.failure.code != "producer_died":
                    return job
                continue  # it was cut off: try again
            if _is_silent(connection, job):
                notify(f"Job {job_id} was interrupted before it was accepted; submitting it again.")
                continue
            if not notified:
                notify(f"Another command submits job {job_id} under this key; waiting until it is accepted.")
            notified = True
        time.sleep(POLL_SECONDS)


def _is_silent(connection: QueueConnection, job: Job) -> bool:
    """Whether the producer of a job died in the middle of submitting it; the job is failed then."""
    with connection.errors():
        silence = abs(connection.store.now() - job.producer_seen)  # in the future: the clock was set back
        return silence > connection.settings.producer_ttl and connection.ledger.abandon(job.id, job.producer_seen)


def _check_same(job: Job, spec: JobSpec, key: str | None) -> None:
    names = (field.name for field in fields(JobSpec) if field.name not in _MAY_DIFFER)
    differing = [name for name in names if getattr(job.spec, name) != getattr(spec, name)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"The idempotency key {key!r} belongs to job {job.id}, whose {name} is {_shown(job.spec, name)!r}, not "
            f"{_shown(spec, name)!r}. Submit under another key, or delete that job with `producer delete {job.id}`."
        )


def _shown(spec: JobSpec, name: str) -> object:
    """Return the value of a field for a message."""
    value = getattr(spec, name)
    return mask_notify_url(value) if name == "notify" and value else value
