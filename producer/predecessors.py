"""Predecessors of a job: the jobs that it waits for, and those that wait for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from common.errors import UnknownJob, UsageError
from common.jobs import MAX_AFTER, Job, JobSpec, JobStatus
from common.records import Json
from common.settings import Settings
from producer.model_check import check_job_model
from producer.queue_connection import QueueConnection

#: Jobs that are looked at to find what waits for one, over the whole chain.
_MAX_WAITING = 1000
#: Jobs that a sentence names.
_MAX_NAMED = 5


def with_predecessors(connection: QueueConnection, spec: JobSpec, names: Sequence[str], settings: Settings) -> JobSpec:
    """Return a job that waits for the jobs with these names, and for the one that trains its model.

    Args:
        connection: The queue.
        spec: The job; those that it waits for already stay.
        names: Ids, prefixes of ids, or `@last`.
        settings: Of the submit.

    Raises:
        UsageError: There is no such job, or several ids have the prefix; there are too many; its model is that of a
            job without one; or it is to run in any case after no job.
        StoreUnavailable: Redis cannot be reached.
    """
    found = [*spec.after, *(_find(connection, name) for name in names)]
    trains = check_job_model(connection, spec.model, settings)
    after = tuple(dict.fromkeys([*found, *([trains] if trains else [])]))
    if len(after) > MAX_AFTER:
        raise UsageError(f"--after: a job may wait for {MAX_AFTER} others at most, found {len(after):,}.")
    if spec.after_any and not after:
        raise UsageError("--after-any: name the jobs to wait for with --after JOB.")
    return replace(spec, after=after)


def _find(connection: QueueConnection, name: str) -> str:
    try:
        return connection.load_job(connection.full_id(name)).id
    except UnknownJob as error:
        raise UsageError(f"--after {name}: {error}") from error


def find_predecessors(connection: QueueConnection, job: Job) -> dict[str, Job | None]:
    """Return the jobs that a blocked job waits for, None for one that is gone; of any other job, none."""
    if job.status is not JobStatus.BLOCKED:
        return {}
    with connection.errors():
        return connection.store.find(job.spec.after)


def find_waiting(connection: QueueConnection, job_id: str) -> list[Job]:
    """Return the blocked jobs that are cancelled if a job fails: they wait for it or, in turn, for one of these."""

    def would_end(job: Job) -> bool:
        return job.status is JobStatus.BLOCKED and not job.spec.after_any and not job.unblocked

    return _follow(connection, job_id, would_end)


def find_cancelled(connection: QueueConnection, job_id: str) -> list[Job]:
    """Return the jobs that were cancelled because this one, or one that waited for it, failed; the oldest first.

    In this order they can be retried: a job is older than those that wait for it.
    """

    def was_cancelled(job: Job) -> bool:
        code = job.failure.code if job.failure else None
        return job.status is JobStatus.CANCELLED and code == "predecessor_failed"

    return _follow(connection, job_id, was_cancelled)


def _follow(connection: QueueConnection, job_id: str, concerns: Callable[[Job], bool]) -> list[Job]:
    """Return the jobs of some kind that a job is a predecessor of, and those that these are of; the oldest first."""
    found: dict[str, Job] = {}
    left = [job_id]
    while left and len(found) < _MAX_WAITING:
        predecessor = left.pop()
        for job in find_waiters(connection, predecessor):
            if predecessor in job.spec.after and job.id not in found and concerns(job):
                found[job.id] = job
                left.append(job.id)
    return _by_age(found.values())


def find_waiters(connection: QueueConnection, job_id: str) -> list[Job]:
    """Return the jobs that were submitted to wait for a job, or to read its results, in any state."""
    with connection.errors():
        found = connection.store.find(connection.store.waiters(job_id)[:_MAX_WAITING])
    return [job for job in found.values() if job is not None]


def find_readers(connection: QueueConnection, job_id: str) -> list[Job]:
    """Return the finished jobs that read the results of a job, or of such a job; the oldest first.

    Their results repeat its columns as long as it is there.
    """
    inputs, readers = {(f"job:{job_id}",)}, []
    for job in _by_age(find_waiters(connection, job_id)):
        if job.spec.inputs in inputs:
            inputs.add((f"job:{job.id}",))
            readers.append(job)
    return [job for job in readers if job.status.finished]


def _by_age(jobs: Iterable[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: job.spec.created_at)


def describe_wait(predecessors: Mapping[str, Job | None]) -> str:
    """Return what a job waits for: `waits for job 0123456789ab (40 %)`; empty if for nothing."""
    words = [_describe(job) for job in predecessors.values() if job is not None and not job.status.finished]
    if not words:
        return ""
    more = f" and {len(words) - _MAX_NAMED:,} more" if len(words) > _MAX_NAMED else ""
    return f"waits for {', '.join(words[:_MAX_NAMED])}{more}"


def _describe(job: Job) -> str:
    trains = job.spec.training is not None
    done: Json = job.progress.get("step") if trains else job.counts.done
    total: Json = job.progress.get("steps") if trains else job.records
    known = isinstance(done, int) and isinstance(total, int) and total > 0 and job.status is JobStatus.RUNNING
    return f"job {job.id} ({f'{min(100, 100 * done // total)} %' if known else job.status})"


def name_jobs(jobs: Sequence[Job]) -> str:
    """Return the ids of jobs for a sentence, of many the first ones."""
    names = ", ".join(job.id for job in jobs[:_MAX_NAMED])
    return f"{names} and {len(jobs) - _MAX_NAMED:,} more" if len(jobs) > _MAX_NAMED else names
