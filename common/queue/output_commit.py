"""Output commit: completing a job whose outcomes are in files, once all of them are there.

The worker that commits the last chunk does it. If that worker dies, a reaper does: each step may happen twice.
"""

import logging

import redis

from common.errors import PayloadError, ResultsLost, StorageError, UnknownJob
from common.payloads.job_payloads import JobPayloads
from common.queue.jobs import JobStore
from common.queue.ledger import Lease, Ledger
from common.records import Failure

logger = logging.getLogger(__name__)


def finish_commit(store: JobStore, ledger: Ledger, payloads: JobPayloads, lease: Lease) -> None:
    """Move the part of a chunk that was just committed to its final place; after the last one, complete the job.

    Nothing is lost if this fails: the chunk is committed and its part written, and a reaper tries again.
    """
    try:
        if payloads.parts is not None:
            payloads.parts.commit_part(lease.chunk, lease.version)
        if payloads.in_files:
            commit_output(store, ledger, lease.job_id, payloads)
    except (StorageError, PayloadError, UnknownJob, redis.RedisError) as error:
        logger.warning("chunk %d of job %s is left to a reaper: %s", lease.chunk, lease.job_id, error)


def commit_output(store: JobStore, ledger: Ledger, job_id: str, payloads: JobPayloads) -> bool:
    """Complete a job that only lacks the commit of its output; return whether this call did it.

    If files are missing, their chunks are opened and the job fails: a retry runs them again.

    Raises:
        StorageError: the files cannot be read or written now.
        PayloadError: a commit history is broken.
        UnknownJob: the job was deleted meanwhile.
        redis.RedisError: Redis is away.
    """
    commits = ledger.uncommitted_output(job_id)
    if not commits:
        return False
    parts = payloads.parts
    if parts is not None:
        parts.commit_pending({chunk: versions[-1] for chunk, versions in commits.items() if versions})
    lost = payloads.lost(commits)
    job, failed = store.job(job_id), ledger.failures_by_chunk(job_id)
    if ledger.uncommitted_output(job_id) != commits:  # another process has done it meanwhile
        return False
    if lost:
        ledger.forget_commits(job_id, job.round, lost)
        gone = f"The outcomes of {len(lost):,} of {len(commits):,} chunks are no longer in {payloads.location}"
        ledger.fail(job_id, Failure(ResultsLost.code, f"{gone}: `producer retry {job_id}` runs these chunks again."))
        return False
    if parts is not None:
        parts.commit_job(job, {chunk: failed.get(chunk, 0) for chunk in sorted(commits)})
    return ledger.note_output_committed(job_id, job.round)
