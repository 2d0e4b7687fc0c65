"""Where progress goes: the job's hash, which `watch` and `status` read, and an event, which Flower shows."""

import json
import logging
import time
from collections.abc import Mapping

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from common.queue.jobs import JobStore
from common.records import Json

logger = logging.getLogger(__name__)

#: Seconds between two events; each is a message that every watcher gets.
_EVENTS = 2.0
#: The numbers that are told of a step, and how.
_NUMBERS = {"loss": "loss {:.4g}", "learning_rate": "learning rate {:.3g}", "examples_per_second": "{:,.1f} examples/s"}


class ProgressReporter:
    """Writes a fine-tune job's progress; being unable to is no reason to stop the work.

    Made in the thread of the handler: Celery knows there which ticket is in hand.
    """

    def __init__(self, job_id: str, store: JobStore, app: Celery) -> None:
        self._job_id = job_id
        self._store = store
        task = app.current_worker_task
        self._ticket = task.request.id if task else None
        self._app = app
        self._sent = 0.0

    def __call__(self, progress: Mapping[str, Json]) -> None:
        """Write the progress, and in a few words the stage."""
        words = format_progress(progress)
        try:
            self._store.note(self._job_id, "progress", json.dumps(progress))
            self._store.note(self._job_id, "stage", words)
            if self._ticket and time.monotonic() - self._sent > _EVENTS:
                self._sent = time.monotonic()
                with self._app.events.default_dispatcher() as dispatcher:
                    dispatcher.send("task-progress", uuid=self._ticket, result=words)
        except (redis.RedisError, OperationalError) as error:
            logger.info("progress of job %s not told: %s", self._job_id, error)


def format_progress(progress: Mapping[str, Json]) -> str:
    """Return the progress in a few words."""
    if progress.get("stage") or "steps" not in progress:
        return str(progress.get("stage") or "")
    words = [f"step {progress['step']:,} of {progress['steps']:,}"]
    for name, text in _NUMBERS.items():
        if progress.get(name) is not None:
            words.append(text.format(progress[name]))
    if progress.get("seconds_left") is not None:
        minutes, seconds = divmod(round(progress["seconds_left"]), 60)
        words.append(f"{minutes}:{seconds:02} left")
    evaluated = [
        f"{name if name == 'eval_loss' else name.removeprefix('eval_')} {value:.4g}"
        for name, value in (progress.get("metrics") or {}).items()
        if isinstance(value, int | float)
    ]
    return ", ".join(words) + (f"; {', '.join(evaluated)}" if evaluated else "")
