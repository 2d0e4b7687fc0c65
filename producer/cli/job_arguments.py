"""From what a command names to jobs: ids, or a name, labels and more that several have."""

from collections.abc import Callable, Sequence

from common.errors import HugqueueError, UnknownJob, UsageError
from producer.cli.terminal import Notify
from producer.client import Client
from producer.job_filter import JobFilter
from producer.job_handle import JobHandle


def select_jobs(client: Client, job_ids: Sequence[str], wanted: JobFilter) -> list[JobHandle]:
    """Return the jobs of these ids, in their order; or all that are wanted, the newest first.

    Raises:
        UsageError: neither was given, or both; or one of the ids is begun by several.
        UnknownJob: there is none of one of the ids.
        HugqueueError: no job is wanted.
    """
    return [client.job(job_id) for job_id in _selected_ids(client, job_ids, wanted)]


def _selected_ids(client: Client, job_ids: Sequence[str], wanted: JobFilter) -> list[str]:
    if bool(job_ids) == bool(wanted):
        raise UsageError("Name jobs by their ids, or choose them with options (--name, --label): one of the two.")
    if job_ids:
        return list(job_ids)
    found = client.jobs(status=wanted.status, name=wanted.name, labels=wanted.labels, older_than=wanted.older_than)
    if not found:
        raise HugqueueError(f"There is no job with {wanted}. `producer jobs` lists those there are.")
    return [job.id for job in found]


def for_each_job(
    client: Client, job_ids: Sequence[str], wanted: JobFilter, step: Callable[[JobHandle], None]
) -> list[HugqueueError]:
    """Do a step for each of the jobs that `choose` gives; return what was wrong with some, the others being done.

    Raises:
        UsageError: neither ids nor what chooses were given, or both.
        HugqueueError: no job is wanted.
    """
    faults: list[HugqueueError] = []
    for job_id in _selected_ids(client, job_ids, wanted):
        try:
            step(client.job(job_id))
        except (UnknownJob, UsageError) as error:
            faults.append(error)
    return faults


def raise_last(faults: Sequence[HugqueueError], notify: Notify) -> None:
    """Tell all that was wrong; raise the last, which is told by whoever catches it.

    Raises:
        HugqueueError: there was something.
    """
    for fault in faults[:-1]:
        notify(f"Error: {fault}")
    for fault in faults[-1:]:
        raise fault
