"""A job as one row of Flower: its state, and one line of text that says how far it is or how it ended."""

from collections import deque

from common.display_text import one_line
from common.durations import format_duration
from common.jobs import Job, JobStatus, short_model
from common.records import Json
from workers.training.controller.progress import format_progress

#: Name of the rows, where a ticket has that of its handler: one filter shows all jobs.
ROW_NAME = "hugqueue.job"
#: The event of each status. Celery's receivers know those of the last three; of others they make a state of that name.
EVENTS = {
    JobStatus.SUBMITTING: "task-submitting",
    JobStatus.BLOCKED: "task-blocked",
    JobStatus.QUEUED: "task-queued",
    JobStatus.RUNNING: "task-progress",
    JobStatus.CANCELLING: "task-progress",
    JobStatus.COMPLETED: "task-succeeded",
    JobStatus.FAILED: "task-failed",
    JobStatus.CANCELLED: "task-revoked",
}
#: Seconds over which the rate of records is averaged.
_WINDOW_SECONDS = 60.0
#: The most characters of a row's text.
_MAX_CHARS = 300


class Rate:
    """The records per second of one job, over the last minute or since its first one began."""

    def __init__(self) -> None:
        self._round = -1
        self._seen: deque[tuple[float, int]] = deque()  #: when, and how many records were done

    def of(self, job: Job, now: float) -> float:
        """Return records per second, 0.0 if unknown.

        Args:
            job: as it is now.
            now: seconds since the epoch, by Redis's clock.
        """
        done = job.counts.done
        if job.round != self._round or not done:
            self._round = job.round
            self._seen.clear()
            if done and not job.round and job.started_at:
                self._seen.append((job.started_at, 0))
        if not self._seen or self._seen[-1][1] != done:
            self._seen.append((now, done))
        # Two changes stay, however old they are: a chunk of a slow model may take minutes.
        while len(self._seen) > 2 and self._seen[0][0] < now - _WINDOW_SECONDS:
            self._seen.popleft()
        first, before = self._seen[0]
        return max(0.0, (done - before) / (now - first)) if now > first else 0.0


def describe_arguments(job: Job) -> str:
    """Return which job it is and what it does, in words: its id, name, task and model.

    The id is in the arguments of its tickets too: a search for it finds all of them.
    """
    spec = job.spec
    name = f" {spec.name!r}" if spec.name else ""
    task = spec.task if spec.training is None else f"finetune {spec.task}"
    return " · ".join(filter(None, (f"job {spec.id}{name}", task, short_model(spec.model))))


def row_fields(job: Job, records_per_second: float) -> dict[str, Json]:
    """Return the fields of an event that makes or changes the row of a job.

    Each event has all of them, so that a Flower that has missed the earlier ones shows the same.
    """
    fields: dict[str, Json] = {
        "uuid": job.id,
        "name": ROW_NAME,
        "args": describe_arguments(job),
        "kwargs": "",
        "retries": job.round,
        "received": job.spec.created_at,
        "started": job.started_at,
    }
    if not job.status.finished:
        return fields | {"result": describe_progress(job, records_per_second)}
    fields["result"] = describe_end(job)
    if job.started_at and job.finished_at:
        fields["runtime"] = max(0.0, job.finished_at - job.started_at)
    if job.status is JobStatus.FAILED:
        fields |= {"exception": fields["result"], "traceback": ""}
    return fields


def describe_progress(job: Job, records_per_second: float) -> str:
    """Return how far an unfinished job is: `40 % · 4,000 of 10,000 · 310 records/s · 19s left · 3 failed`."""
    if job.status is JobStatus.SUBMITTING:
        return "its producer is submitting it"
    if job.status is JobStatus.BLOCKED:
        return one_line(f"waits for job {', '.join(job.spec.after)}", _MAX_CHARS)
    if job.spec.training is not None:
        words = [_per_cent(job.progress.get("step"), job.progress.get("steps")), _training(job)]
    else:
        words = _counts(job, records_per_second)
    if job.status is JobStatus.CANCELLING:
        words.append("cancelling")
    return one_line(" · ".join(filter(None, words)) or str(job.status), _MAX_CHARS)


def describe_end(job: Job) -> str:
    """Return how a finished job ended: the reason if it failed, and its counts."""
    counts, records = job.counts, job.records or 0
    words: list[str] = []
    if job.failure and job.status is JobStatus.FAILED:
        words.append(f"{job.failure.code}: {job.failure.message}")
    elif job.status is JobStatus.CANCELLED:
        words.append(f"cancelled: {job.failure.message}" if job.failure else "cancelled")
    if job.spec.training is not None:
        words.append(_training(job, stage="", seconds_left=None))
    elif job.status is JobStatus.COMPLETED:
        words += [f"{counts.succeeded:,} of {records:,} succeeded", _failed(job)]
    else:
        words += [f"{counts.done:,} of {records:,} done", _failed(job)]
    if job.started_at and job.finished_at:
        words.append(f"in {format_duration(job.finished_at - job.started_at)}")
    return one_line(" · ".join(filter(None, words)), _MAX_CHARS)


def _counts(job: Job, records_per_second: float) -> list[str]:
    done, records = job.counts.done, job.records or 0
    words = [_per_cent(done, records), f"{done:,} of {records:,}"]
    if records_per_second > 0 and done < records:
        words.append(f"{records_per_second:,.{0 if records_per_second >= 10 else 1}f} records/s")
        words.append(f"{format_duration((records - done) / records_per_second)} left")
    return [*words, _failed(job), job.stage]


def _training(job: Job, **changes: Json) -> str:
    """Return the step, loss, remaining time and metrics of a fine-tune job: what fits into Flower's column."""
    return format_progress({**job.progress, "learning_rate": None, "examples_per_second": None, **changes})


def _failed(job: Job) -> str:
    return f"{job.counts.failed:,} failed" if job.counts.failed else ""


def _per_cent(done: Json, total: Json) -> str:
    """Return a share, rounded down; empty if one of the two is no number: a job's progress is untrusted."""
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return ""
    return f"{min(100, 100 * done // total)} %"
