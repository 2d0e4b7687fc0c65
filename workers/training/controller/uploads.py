"""Bringing checkpoints and models to a store elsewhere, beside the work: it takes minutes, and places fail for a while.

Whoever waits here looks up meanwhile whether the turn is still wanted, so that a cancel never waits for a network.
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from common.errors import StorageError, UsageError
from common.models.checkpoints import best_step, is_complete, step_of
from common.models.registry import ModelRegistry

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks at whether the turn was given up.
POLL_SECONDS = 0.1
#: Seconds before each further try to store a finished model.
RETRY_DELAYS = (1.0, 5.0, 20.0, 60.0)
#: Checkpoints on their way: Trainer clears its own away as it goes on.
_STAGED = ".uploads"


def run_in_thread(work: Callable[[], T], check_cancelled: Callable[[], None]) -> T:
    """Return what `work` gives, done in a thread of its own, while `look` is called again and again.

    Raises:
        Exception: what `work` raises; or what `look` does, and then the work is left to itself.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    while not future.done():
        check_cancelled()
        wait([future], POLL_SECONDS)
    return future.result()


def add_model(
    store: ModelRegistry, job_id: str, attempt: str, directory: Path, check_cancelled: Callable[[], None]
) -> None:
    """Take a finished model into the store, in several tries; `look` raises when it is not wanted any more.

    Raises:
        StorageError: the store could not be reached in any of them.
        UsageError: it refused us in all of them.
    """
    for pause in RETRY_DELAYS:
        try:
            return run_in_thread(lambda: store.add_model(job_id, attempt, directory), check_cancelled)
        except (StorageError, UsageError) as error:
            logger.warning("job %s: the model is not stored yet, next try in %.0f s: %s", job_id, pause, error)
        end = time.monotonic() + pause
        while time.monotonic() < end:
            check_cancelled()
            time.sleep(POLL_SECONDS)
    return run_in_thread(lambda: store.add_model(job_id, attempt, directory), check_cancelled)


class Uploads:
    """The checkpoints of an attempt on their way to the store, one after the other, in a thread.

    Of those that wait only the newest and the best are uploaded. A fault is logged, and the next checkpoint is the next
    try. Where the store is a directory, there is nothing to bring.

    Args:
        store: where they go.
        job_id: the job.
        attempt: the name of the attempt.
        on_uploaded: gets the steps of each checkpoint that lies in the store; called in any thread.
    """

    def __init__(self, store: ModelRegistry, job_id: str, attempt: str, on_uploaded: Callable[[int], None]) -> None:
        self._on_uploaded = on_uploaded
        self._store = store
        self._job_id = job_id
        self._attempt = attempt
        self._waiting: list[Path] = []
        self._changed = threading.Condition()
        self._running = False

    def add(self, checkpoint: Path) -> None:
        """Take a checkpoint that was just written; returns at once."""
        if not self._store.uploads:
            self._on_uploaded(step_of(checkpoint))
            return
        staged = checkpoint.parent / _STAGED / checkpoint.name
        _link_files(checkpoint, staged)
        if not is_complete(staged):  # cleared away meanwhile: there are newer ones
            return
        best = best_step(staged)
        with self._changed:
            passed = [one for one in self._waiting if step_of(one) != best]
            self._waiting = [*(one for one in self._waiting if one not in passed), staged]
            self._start()
        for one in passed:
            shutil.rmtree(one, ignore_errors=True)

    def discard_pending(self) -> None:
        """Forget those that wait: the model is finished."""
        with self._changed:
            self._waiting = []

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until nothing is on its way; return whether that came about in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def flush(self, seconds: float) -> None:
        """Give those that are left so long, and one more try: there will be no further checkpoint."""
        with self._changed:
            self._start()
        self.wait_until_idle(seconds)

    def _start(self) -> None:
        if self._waiting and not self._running:
            self._running = True
            threading.Thread(target=self._run, name="uploads", daemon=True).start()

    def _run(self) -> None:
        while (checkpoint := self._next_checkpoint()) is not None:
            try:
                self._store.upload_checkpoint(self._job_id, self._attempt, checkpoint)
            except (StorageError, UsageError, OSError) as error:
                logger.warning("job %s: %s is not stored yet: %s", self._job_id, checkpoint.name, error)
                self._put_back(checkpoint)
                return
            self._on_uploaded(step_of(checkpoint))
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _next_checkpoint(self) -> Path | None:
        with self._changed:
            if self._waiting:
                return self._waiting.pop(0)
            self._set_idle()
            return None

    def _put_back(self, checkpoint: Path) -> None:
        with self._changed:
            self._waiting.insert(0, checkpoint)
            self._set_idle()

    def _set_idle(self) -> None:
        self._running = False
        self._changed.notify_all()


def _link_files(checkpoint: Path, staged: Path) -> None:
    """Keep the files under a second name."""
    shutil.rmtree(staged, ignore_errors=True)
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(checkpoint, staged, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)
