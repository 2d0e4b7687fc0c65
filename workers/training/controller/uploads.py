"""Uploads of checkpoints and models to a remote model registry, in the background while training continues.

An upload may take minutes, and the registry may be unavailable for a while. Whoever waits here keeps checking for
cancellation, so that a cancel never waits for the network.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from common.errors import StorageError, UsageError
from common.models.checkpoints import best_step, is_complete, step_of
from common.models.registry import ModelRegistry
from common.reporting import CancelToken

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two checks for cancellation.
POLL_SECONDS = 0.1
#: Seconds before each further attempt to store a finished model.
RETRY_DELAYS = (1.0, 5.0, 20.0, 60.0)
#: Directory of hard links to checkpoints that wait for upload: Trainer deletes its own as it continues.
_STAGED = ".uploads"


def run_in_thread(work: Callable[[], T], cancel_token: CancelToken) -> T:
    """Return the result of `work`, run in its own thread.

    Raises:
        Cancelled: it was cancelled, and the work is abandoned.
        Exception: what `work` raises.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            future.set_exception(error)

    # No executor: its threads would keep the worker from exiting while the registry hangs.
    threading.Thread(target=run, name="upload", daemon=True).start()
    while not future.done():
        cancel_token.check()
        wait([future], POLL_SECONDS)
    return future.result()


def add_model(registry: ModelRegistry, job_id: str, attempt: str, directory: Path, cancel_token: CancelToken) -> None:
    """Add a finished model to the registry, with retries.

    Raises:
        Cancelled: it was cancelled, and the model is abandoned.
        StorageError: the registry was unavailable at the last attempt.
        UsageError: it denied access at the last attempt.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            run_in_thread(lambda: registry.add_model(job_id, attempt, directory), cancel_token)
            return
        except (StorageError, UsageError) as error:
            if delay is None:
                raise
            logger.warning("job %s: the model is not stored yet, retrying in %.0f s: %s", job_id, delay, error)
        cancel_token.wait(delay)
        cancel_token.check()


class Uploads:
    """A background thread that uploads the checkpoints of an attempt, one after the other.

    Of the waiting checkpoints, only the newest and the best are uploaded. A failed upload is logged and retried with
    the next checkpoint. Where the registry is a local directory, there is nothing to upload.

    Args:
        registry: where the checkpoints go.
        job_id: the job.
        attempt: the name of the attempt.
        on_uploaded: called with the step of each stored checkpoint, from any thread.
    """

    def __init__(self, registry: ModelRegistry, job_id: str, attempt: str, on_uploaded: Callable[[int], None]) -> None:
        self._registry = registry
        self._job_id = job_id
        self._attempt = attempt
        self._on_uploaded = on_uploaded
        self._pending: list[Path] = []
        self._changed = threading.Condition()
        self._running = False

    def add(self, checkpoint: Path) -> None:
        """Queue a checkpoint that was just written; returns at once."""
        if not self._registry.uploads:
            self._on_uploaded(step_of(checkpoint))
            return
        staged = checkpoint.parent / _STAGED / checkpoint.name
        _link_files(checkpoint, staged)
        if not is_complete(staged):  # Trainer deleted it meanwhile: there are newer ones
            return
        best = best_step(staged)
        with self._changed:
            superseded = [path for path in self._pending if step_of(path) != best]
            self._pending = [*(path for path in self._pending if path not in superseded), staged]
            self._start()
        for path in superseded:
            shutil.rmtree(path, ignore_errors=True)

    def discard_pending(self) -> None:
        """Drop the waiting checkpoints: the model is finished."""
        with self._changed:
            self._pending = []

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait for the running upload; return whether it ended in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def flush(self, seconds: float) -> None:
        """Try the waiting checkpoints once more, for at most this long: no further checkpoint follows."""
        with self._changed:
            self._start()
        self.wait_until_idle(seconds)

    def _start(self) -> None:
        if self._pending and not self._running:
            self._running = True
            threading.Thread(target=self._run, name="uploads", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._pending:
                    return self._set_idle()
                checkpoint = self._pending.pop(0)
            try:
                self._registry.upload_checkpoint(self._job_id, self._attempt, checkpoint)
            except (StorageError, UsageError, OSError) as error:
                logger.warning("job %s: %s is not stored yet: %s", self._job_id, checkpoint.name, error)
                with self._changed:
                    self._pending.insert(0, checkpoint)
                    return self._set_idle()
            self._on_uploaded(step_of(checkpoint))
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _set_idle(self) -> None:
        self._running = False
        self._changed.notify_all()


def _link_files(checkpoint: Path, staged: Path) -> None:
    """Keep the files under a second name."""
    shutil.rmtree(staged, ignore_errors=True)
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(checkpoint, staged, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)
