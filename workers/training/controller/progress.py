"""Progress of fine-tune jobs: written to the job's hash (`watch`, `status`) and sent as Celery events (Flower)."""

import json
import logging
import time
from collections.abc import Mapping

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from common.queue.jobs import JobStore
from common.records import Json
from common.reporting import CancelToken, Reporter

logger = logging.getLogger(__name__)

#: Seconds between two events; every watcher receives each of them.
_EVENT_SECONDS = 2.0
#: The numbers that describe a step, and their format.
_NUMBERS = {"loss": "loss {:.4g}", "learning_rate": "learning rate {:.3g}", "examples_per_second": "{:,.1f} examples/s"}


class ProgressReporter(Reporter):
    """Collects and publishes the progress of one fine-tune job; a failure to publish it does not stop the job.

    Create it in the thread of the task handler, where Celery knows the current task.
    """

    def __init__(self, job_id: str, store: JobStore, app: Celery, cancel_token: CancelToken) -> None:
        self._job_id = job_id
        self._store = store
        self._app = app
        self._cancel_token = cancel_token
        task = app.current_worker_task
        self._task_id = task.request.id if task else None
        self._event_sent = 0.0
        self._progress: dict[str, Json] = {}
        self.notes: list[str] = []

    def stage(self, text: str) -> None:
        """Publish the job's progress. Raises `Cancelled`."""
        self._cancel_token.check()
        self.progress({"stage": text})

    def warning(self, text: str) -> None:
        """Publish a remark that stays with the job."""
        if text not in self.notes:
            self.notes.append(text)
            self.progress({})

    def progress(self, values: Mapping[str, Json]) -> None:
        """Publish the progress with these values changed."""
        self._progress |= values
        progress = {**self._progress, "notes": self.notes}
        text = format_progress(progress)
        try:
            self._store.set_field(self._job_id, "progress", json.dumps(progress))
            self._store.set_field(self._job_id, "stage", text)
            if self._task_id and time.monotonic() - self._event_sent > _EVENT_SECONDS:
                self._event_sent = time.monotonic()
                with self._app.events.default_dispatcher() as dispatcher:
                    dispatcher.send("task-progress", uuid=self._task_id, result=text)
        except (redis.RedisError, OperationalError) as error:
            logger.info("progress of job %s not published: %s", self._job_id, error)


def format_progress(progress: Mapping[str, Json]) -> str:
    """Return the progress in a few words."""
    if progress.get("stage") or "steps" not in progress:
        return str(progress.get("stage") or "")
    parts = [f"step {progress['step']:,} of {progress['steps']:,}"]
    parts += [text.format(progress[name]) for name, text in _NUMBERS.items() if progress.get(name) is not None]
    if progress.get("seconds_left") is not None:
        minutes, seconds = divmod(round(progress["seconds_left"]), 60)
        parts.append(f"{minutes}:{seconds:02} left")
    metrics = [
        f"{name if name == 'eval_loss' else name.removeprefix('eval_')} {value:.4g}"
        for name, value in (progress.get("metrics") or {}).items()
        if isinstance(value, int | float)
    ]
    return "; ".join(filter(None, (", ".join(parts), ", ".join(metrics))))
