"""Train chunks in the Celery process: one at a time, whatever else the worker does. Never imports torch."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from celery import Celery

from common.errors import Cancelled, UsageError, WorkerError
from common.jobs import Job
from common.queue.jobs import JobStore
from common.settings import Settings
from workers.device.client.client import ChunkResult
from workers.devices import only_trains
from workers.disk_space import DISK_FULL_ERRNOS
from workers.leases import HeldLease
from workers.training.controller.attempt import Attempt, TrainChunk
from workers.training.controller.progress import ProgressReporter
from workers.training.controller.uploads import POLL_SECONDS


class FineTuner:
    """Runs train chunks, one at a time."""

    def __init__(self, settings: Settings, store: JobStore, app: Celery) -> None:
        self._settings = settings
        self._store = store
        self._app = app
        self._one_at_a_time = threading.Lock()

    @property
    def runs_other_tasks(self) -> bool:
        """Whether the worker does other work as well, for which it needs its device process."""
        return not only_trains(self._settings)

    def run(
        self, job: Job, held: HeldLease, stopping: threading.Event, on_checkpoint: Callable[[int], None]
    ) -> ChunkResult:
        """Return what came of a train chunk: one outcome, the metrics and the place of the model.

        `on_checkpoint` is told at how many steps there is a checkpoint that outlives this worker.

        Raises:
            Cancelled: the turn was given up, or the worker is stopping.
            ModelError: the job cannot be done.
            WorkerError: this worker cannot do it.
        """
        while not self._one_at_a_time.acquire(timeout=POLL_SECONDS):
            if held.cancelled.is_set() or stopping.is_set():
                raise Cancelled
        train_chunk = TrainChunk(job, held, stopping, ProgressReporter(job.id, self._store, self._app), on_checkpoint)
        try:
            with tempfile.TemporaryDirectory(prefix="hugqueue-train-", ignore_cleanup_errors=True) as scratch:
                return Attempt(train_chunk, self._settings, self._store, Path(scratch)).run()
        except UsageError as error:  # the store is not where it should be, or refuses us
            raise WorkerError("models_store", str(error)) from error
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            raise WorkerError("disk_full", f"No room for the work of a fine-tune job: {error}") from error
        finally:
            self._one_at_a_time.release()
