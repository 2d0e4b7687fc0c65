"""Following a job to its end, with progress; and what is said of it then."""

from common.durations import duration
from common.errors import UsageError
from common.jobs import Job, JobStatus
from common.queue.heartbeats import serving
from producer.cli.failures import count_failures, describe_failures
from producer.cli.progress import JobProgress, job_progress
from producer.cli.terminal import Notify
from producer.client import Client
from producer.job_handle import JobHandle


def follow(client: Client, handle: JobHandle, notify: Notify) -> Job:
    """Return the job once it is finished; show its progress meanwhile. Ctrl-C ends that, not the job.

    Raises:
        UnknownJob: It was deleted.
    """
    try:
        with job_progress() as progress:
            job = handle.poll(_Watcher(client, handle, progress, notify, own=False))
    except KeyboardInterrupt:
        notify(f"Job {handle.id} is not stopped. `producer watch {handle.id}` comes back to it.")
        raise
    _say_end(handle, notify)
    return job


def watch_to_end(client: Client, handle: JobHandle, notify: Notify) -> tuple[Job, bool]:
    """Follow a job that this command has submitted, by `watch_own_job` where the worker is its own, else by `follow`.

    Returns:
        The finished job, and whether it was cancelled by Ctrl-C.
    """
    return watch_own_job(client, handle, notify) if client.embedded else (follow(client, handle, notify), False)


def watch_own_job(client: Client, handle: JobHandle, notify: Notify) -> tuple[Job, bool]:
    """Follow a job whose worker lives only as long as this command; Ctrl-C cancels it, then.

    Returns:
        The finished job, and whether it was cancelled by Ctrl-C.

    Raises:
        UsageError: the worker has not the device that the job asks for; the job is cancelled.
        KeyboardInterrupt: a second Ctrl-C, while the job is being cancelled.
    """
    interrupted = False
    try:
        with job_progress() as progress:
            job = handle.poll(_Watcher(client, handle, progress, notify, own=True))
    except KeyboardInterrupt:
        interrupted = True
        notify(f"Cancelling job {handle.id}; what is done is kept. Press Ctrl-C again to leave at once.")
        handle.cancel()
        job = handle.poll(lambda _: None)
    _say_end(handle, notify)
    return job, interrupted


class _Watcher:
    """Takes every state of a job that is seen: shows the progress, and says what keeps it from going on."""

    def __init__(self, client: Client, handle: JobHandle, progress: JobProgress, notify: Notify, *, own: bool) -> None:
        self._client = client
        self._handle = handle
        self._progress = progress
        self._notify = notify
        self._own = own
        self._refusals: set[str] = set()

    def __call__(self, job: Job) -> None:
        self._progress.update(job)
        if job.status.finished:
            return
        self._say_refusals()
        if self._own and job.status is JobStatus.QUEUED and job.spec.queue != "any":
            self._check_device(job)

    def _say_refusals(self) -> None:
        for worker, reason in self._handle.refusals().items():
            if reason not in self._refusals:
                self._refusals.add(reason)
                self._notify(f"Worker {worker} passes this job over for now: {reason}")

    def _check_device(self, job: Job) -> None:
        """End a job that waits for a device which the worker of this command has not."""
        ready = [worker for worker in self._client.connection.workers() if worker.state == "ready"]
        if ready and not serving(ready, job.spec.queue):
            self._handle.cancel()
            raise UsageError(
                f"--device {job.spec.queue}: the embedded worker runs on {ready[0].device} ({ready[0].device_name}). "
                "Leave --device out, or set REDIS_URL to a Redis with such a worker."
            )


def describe_outcome(job: Job) -> str:
    """Return how a finished job went, in one line."""
    counts = job.counts
    text = f"job {job.id}: {job.status}, {counts.succeeded:,} succeeded, {counts.failed:,} failed"
    if job.started_at and job.finished_at:
        text += f", in {duration(job.finished_at - job.started_at)}"
    if job.failure:
        text += f"; {job.failure.code}: {job.failure.message}"
    return text


def _say_end(handle: JobHandle, notify: Notify) -> None:
    job = handle.state
    counts = job.counts
    done = f"{counts.done:,} of {job.records or 0:,} records are done"
    if job.status is JobStatus.FAILED and job.failure:
        notify(f"Job {job.id} failed: {job.failure.code}: {job.failure.message}")
        if counts.done:
            notify(f"{done}: `producer results {job.id}` gives them.")
    elif job.status is JobStatus.CANCELLED:
        notify(f"Job {job.id} was cancelled: {done}.")
    elif counts.failed:
        notify(describe_failures(job, count_failures(handle)))
    if counts.truncated:
        notify(f'{counts.truncated:,} records were cut to what the model takes (marked "truncated").')
