"""From what a command names to jobs: ids, or a name and labels that several have."""

from collections.abc import Callable, Sequence

from common.errors import HugqueueError, UnknownJob, UsageError
from producer.client import Client
from producer.handle import JobHandle
from producer.printing import Say
from producer.selection import Selection, parse_labels


def choose(client: Client, job_ids: Sequence[str], name: str | None, labels: Sequence[str]) -> list[JobHandle]:
    """Return the jobs of these ids, in their order; or all of that name and those labels, the newest first.

    Raises:
        UsageError: neither was given, or both.
        UnknownJob: there is none of one of the ids.
        HugqueueError: no job has that name and those labels.
    """
    return [client.job(job_id) for job_id in _ids(client, job_ids, name, labels)]


def _ids(client: Client, job_ids: Sequence[str], name: str | None, labels: Sequence[str]) -> list[str]:
    wanted = Selection(name=name, labels=parse_labels(labels))
    if bool(job_ids) == bool(wanted):
        raise UsageError("Name jobs by their ids, or choose them with --name and --label: one of the two.")
    if job_ids:
        return list(job_ids)
    found = client.jobs(name=name, labels=wanted.labels)
    if not found:
        raise HugqueueError(f"There is no job with {wanted}. `producer jobs` lists those there are.")
    return [job.id for job in found]


def do_for_each(
    client: Client,
    job_ids: Sequence[str],
    name: str | None,
    labels: Sequence[str],
    step: Callable[[JobHandle], None],
) -> list[HugqueueError]:
    """Do a step for each of the jobs that `choose` gives; return what was wrong with some, the others being done.

    Raises:
        UsageError: neither ids nor a name and labels were given, or both.
        HugqueueError: no job has that name and those labels.
    """
    faults: list[HugqueueError] = []
    for job_id in _ids(client, job_ids, name, labels):
        try:
            step(client.job(job_id))
        except (UnknownJob, UsageError) as error:
            faults.append(error)
    return faults


def raise_last(faults: Sequence[HugqueueError], say: Say) -> None:
    """Tell all that was wrong; raise the last, which is told by whoever catches it.

    Raises:
        HugqueueError: there was something.
    """
    for fault in faults[:-1]:
        say(f"Error: {fault}")
    for fault in faults[-1:]:
        raise fault
