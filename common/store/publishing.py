"""The end of a job whose workers write its output: its last part is placed, the output whole, the job completed.

Whoever commits the last chunk does it. If that worker dies over it, a reaper does: each step may be done twice.
"""

import logging

import redis

from common.errors import PayloadError, StorageError, UnknownJob
from common.payloads.output_parts import OutputParts
from common.store.ledger import Lease, Ledger
from common.store.store import Store

logger = logging.getLogger(__name__)


def place_part(store: Store, ledger: Ledger, job_id: str, parts: OutputParts, lease: Lease) -> None:
    """Put the part of a chunk that was just committed in its place, and end the job if it was the last one.

    What goes wrong here is no loss: the chunk is committed, and its part aside.
    """
    try:
        parts.place(lease.chunk, lease.version)
        publish(store, ledger, job_id, parts)
    except (StorageError, PayloadError, UnknownJob, redis.RedisError) as error:
        logger.warning("chunk %d of job %s waits for a reaper: %s", lease.chunk, job_id, error)


def publish(store: Store, ledger: Ledger, job_id: str, parts: OutputParts) -> bool:
    """Say that the output of a job is whole, if that is all it lacks; return whether it was.

    Raises:
        StorageError: its place cannot be written now.
        PayloadError: the list of commits is broken.
        UnknownJob: it was deleted meanwhile.
        redis.RedisError: Redis is away.
    """
    versions = ledger.unpublished(job_id)
    if not versions:
        return False
    parts.place_rest(versions)
    job, failed = store.job(job_id), ledger.failed_in(job_id)
    if ledger.unpublished(job_id) != versions:  # another one has done it meanwhile
        return False
    parts.close(job, {chunk: failed.get(chunk, 0) for chunk in sorted(versions)})
    return ledger.publish(job_id, job.round)
