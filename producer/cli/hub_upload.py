"""Results of a job into a dataset on the Hub, with the job's progress."""

from collections.abc import Callable

from common.console import INTERRUPTED
from common.errors import HugqueueError, UsageError
from common.jobs import Job, JobStatus
from producer.cli.terminal import Notify, exit_status
from producer.cli.watch import watch_submitted_job
from producer.client import Client
from producer.hub.upload import Uploaded
from producer.job_handle import JobHandle
from producer.outputs.hub_target import HubOutput


def upload_job(client: Client, handle: JobHandle, target: HubOutput, notify: Notify) -> int:
    """Upload the results of a job while it runs, until it is finished and all are there; return the exit status.

    Raises:
        UsageError: the dataset cannot be written, or holds results of another job.
        HugqueueError: the Hub fails for long. What was committed stays, and `producer results` continues.
    """
    found: list[Uploaded] = []

    def follow(on_change: Callable[[Job], None]) -> Job:
        found.append(handle.upload(target, on_change, notify))
        return handle.state

    hint = f"`producer results {handle.id} -o {target}` continues the upload."
    try:
        job, interrupted = watch_submitted_job(client, handle, notify, follow)
    except UsageError:
        raise
    except (HugqueueError, KeyboardInterrupt):
        notify(f"Not all results of job {handle.id} are in {target}. {hint}")
        raise
    for uploaded in found:
        notify(
            f"{uploaded.records:,} records are in {uploaded.url} ({uploaded.shards} files of the split {target.split})"
        )
    if not found and job.status is JobStatus.COMPLETED:
        notify(f"Not all results of job {job.id} are in {target}. {hint}")
    elif not all(uploaded.complete for uploaded in found) or not found:
        notify(f"Job {job.id} is {job.status}. After `producer retry {job.id}`, {hint}")
    return INTERRUPTED if interrupted else exit_status(job)
