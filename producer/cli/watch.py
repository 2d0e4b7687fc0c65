"""Watching a job until it is finished: its progress, what delays it, and how it ended."""

from collections import Counter
from collections.abc import Callable

from common.durations import format_duration
from common.errors import UsageError
from common.jobs import Job, JobStatus
from common.queue.heartbeats import serving
from producer.cli.progress import JobProgress, terminal
from producer.cli.terminal import Notify
from producer.client import Client
from producer.job_handle import JobHandle
from producer.predecessors import describe_wait

#: Codes of records that are themselves invalid, or whose parameters are: they fail again when they are retried.
PERMANENT = frozenset({
    "bad_audio", "bad_csv", "bad_encoding", "bad_image", "bad_json", "bad_param", "bad_request", "bad_text",
    "context_length_exceeded", "empty_text", "missing_field", "no_chat_template", "no_file", "no_mask", "too_large",
    "too_long", "too_many_tokens", "wrong_type",
})  # fmt: skip
#: Failed records that are counted by code; of more, the first are enough.
_MAX_COUNTED = 10_000


#: Passes a job's states to a function until the job is finished, and returns the last one: `JobHandle.poll`.
Follow = Callable[[Callable[[Job], None]], Job]


def watch_job(client: Client, handle: JobHandle, notify: Notify, follow: Follow | None = None) -> Job:
    """Show a job's progress until it is finished, and return it. Ctrl-C stops watching, not the job.

    Args:
        client: of the job's queue.
        handle: the job.
        notify: called with messages.
        follow: what is done meanwhile; None: only waiting.

    Raises:
        UnknownJob: it was deleted.
    """
    try:
        with JobProgress(terminal()) as progress:
            job = (follow or handle.poll)(_Watcher(client, handle, progress, notify, own_worker=False))
    except KeyboardInterrupt:
        notify(f"Job {handle.id} continues. `producer watch {handle.id}` shows its progress again.")
        raise
    _print_summary(handle, notify)
    return job


def watch_submitted_job(
    client: Client, handle: JobHandle, notify: Notify, follow: Follow | None = None
) -> tuple[Job, bool]:
    """Show the progress of a job that this command submitted, until it is finished.

    If its worker is embedded and ends with this command, Ctrl-C cancels the job. Arguments are those of `watch_job`.

    Returns:
        The finished job, and whether Ctrl-C cancelled it.

    Raises:
        UsageError: the embedded worker does not have the job's device; the job is cancelled.
        KeyboardInterrupt: Ctrl-C; with an embedded worker, a second one while the job is being cancelled.
    """
    if not client.embedded:
        return watch_job(client, handle, notify, follow), False
    interrupted = False
    try:
        with JobProgress(terminal()) as progress:
            job = (follow or handle.poll)(_Watcher(client, handle, progress, notify, own_worker=True))
    except KeyboardInterrupt:
        interrupted = True
        notify(f"Cancelling job {handle.id}; finished results are kept. Press Ctrl-C again to exit immediately.")
        handle.cancel()
        job = handle.poll(lambda _: None)
    _print_summary(handle, notify)
    return job, interrupted


class _Watcher:
    """Receives every observed state of a job: shows its progress, and reports what delays it."""

    def __init__(
        self, client: Client, handle: JobHandle, progress: JobProgress, notify: Notify, *, own_worker: bool
    ) -> None:
        self._client = client
        self._handle = handle
        self._progress = progress
        self._notify = notify
        self._own_worker = own_worker
        self._refusals: set[str] = set()

    def __call__(self, job: Job) -> None:
        self._progress.update(job, describe_wait(self._handle.predecessors()))
        if job.status.finished:
            return
        for worker, reason in self._handle.refusals().items():
            if reason not in self._refusals:
                self._refusals.add(reason)
                self._notify(f"Worker {worker} skips this job for now: {reason}")
        if self._own_worker and job.status is JobStatus.QUEUED and job.spec.queue != "any":
            self._check_device(job)

    def _check_device(self, job: Job) -> None:
        """Cancel a job that waits for a device that the embedded worker does not have."""
        ready = [worker for worker in self._client.workers() if worker.state == "ready"]
        if ready and not serving(ready, job.spec.queue):
            self._handle.cancel()
            raise UsageError(
                f"--device {job.spec.queue}: the embedded worker runs on {ready[0].device} ({ready[0].device_name}). "
                "Omit --device, or set REDIS_URL to a Redis with such a worker."
            )


def _print_summary(handle: JobHandle, notify: Notify) -> None:
    job = handle.state
    counts = job.counts
    done = f"{counts.done:,} of {job.records or 0:,} records are done"
    if job.status is JobStatus.FAILED and job.failure:
        notify(f"Job {job.id} failed: {job.failure.code}: {job.failure.message}")
        if counts.done:
            notify(f"{done}; `producer results {job.id}` shows them.")
    elif job.status is JobStatus.CANCELLED:
        notify(f"Job {job.id} was cancelled: {job.failure.message.rstrip('.') if job.failure else done}.")
    elif counts.failed:
        notify(describe_failures(job, count_failures(handle)))
    if counts.truncated:
        notify(f'{counts.truncated:,} records were truncated to the model\'s maximum length (marked "truncated").')


def count_failures(handle: JobHandle) -> "Counter[str]":
    """Count the first failed records by error code."""
    codes: Counter[str] = Counter()
    for row in handle.failed_rows():
        if row.error is not None:
            codes[row.error.code] += 1
        if codes.total() >= _MAX_COUNTED:
            break
    return codes


def describe_outcome(job: Job) -> str:
    """Describe in one line how a job ended."""
    counts = job.counts
    text = f"job {job.id}: {job.status}, {counts.succeeded:,} succeeded, {counts.failed:,} failed"
    if job.started_at and job.finished_at:
        text += f", in {format_duration(job.finished_at - job.started_at)}"
    if job.failure:
        text += f"; {job.failure.code}: {job.failure.message}"
    return text


def describe_failures(job: Job, codes: "Counter[str]") -> str:
    """Describe the failed records of a finished job: how many, why, and what to do."""
    failed = job.counts.failed
    scope = "" if codes.total() >= failed else f"of the first {codes.total():,}: "
    reasons = f" ({scope}{', '.join(f'{code} {count:,}' for code, count in codes.most_common())})" if codes else ""
    text = f"{failed:,} of {job.records or 0:,} records failed{reasons}; `producer results {job.id} --failed` shows"
    if not codes or codes.keys() - PERMANENT:
        return f"{text} them, `producer retry {job.id}` runs them again."
    return f"{text} them. They would fail again: fix the input and submit it again."


def describe_unwritten(job: Job, name: str) -> str:
    """Describe why an output was not written, because its job did not complete, and what to do."""
    done = job.counts.done
    text = f"{name} was not written: the job is {job.status}, with {done:,} of {job.records or 0:,} records done."
    if done:
        text += f" `producer results {job.id} -o FILE` saves those."
    if job.failure is None or job.failure.code not in PERMANENT:
        text += f" `producer retry {job.id} -o {name}` runs the rest."
    return text
