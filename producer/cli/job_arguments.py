"""Selection of jobs on the command line: by ids, or by name, labels, status and age."""

from collections.abc import Callable, Sequence

from common.errors import HugqueueError, UnknownJob, UsageError
from common.jobs import Job
from producer.cli.terminal import Notify
from producer.client import Client
from producer.job_filter import JobFilter
from producer.job_handle import JobHandle
from producer.predecessors import name_jobs


def select_job_ids(client: Client, job_ids: Sequence[str], job_filter: JobFilter) -> list[str]:
    """Return the given ids, or those of all jobs that match the filter, newest first.

    Raises:
        UsageError: neither or both of them are given.
        HugqueueError: no job matches the filter.
    """
    if bool(job_ids) == bool(job_filter):
        raise UsageError("Give either job ids, or options that select jobs (--name, --label).")
    if job_ids:
        return list(job_ids)
    found = client.jobs(
        status=job_filter.status, name=job_filter.name, labels=job_filter.labels, older_than=job_filter.older_than
    )
    if not found:
        raise HugqueueError(f"There is no job with {job_filter}. `producer jobs` lists all jobs.")
    return [job.id for job in found]


def notify_cancelled(waiting: Sequence[Job], notify: Notify) -> None:
    """Say which jobs are cancelled because they waited for one that was cancelled or deleted."""
    if waiting:
        one = len(waiting) == 1
        verbs = "waits for it and is" if one else "wait for it and are"
        notify(f"{len(waiting):,} {'job' if one else 'jobs'} {verbs} cancelled: {name_jobs(waiting)}")


def for_each_job(
    client: Client,
    job_ids: Sequence[str],
    job_filter: JobFilter,
    action: Callable[[JobHandle], None],
    notify: Notify,
) -> None:
    """Call `action` for each selected job; report errors of single jobs once the others are done.

    Raises:
        UsageError: neither or both of `job_ids` and `job_filter` are given, or the last error of a job.
        UnknownJob: the last error of a job.
        HugqueueError: no job matches the filter.
    """
    errors: list[HugqueueError] = []
    for job_id in select_job_ids(client, job_ids, job_filter):
        try:
            action(client.job(job_id))
        except (UnknownJob, UsageError) as error:
            errors.append(error)
    for earlier in errors[:-1]:
        notify(f"Error: {earlier}")
    if errors:
        raise errors[-1]
