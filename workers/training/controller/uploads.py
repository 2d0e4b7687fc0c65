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
from common.models.checkpoints import best_of, is_whole, steps_of
from common.models.registry import ModelsStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks at whether the turn was given up.
LOOK = 0.1
#: Seconds before each further try to store a finished model.
PAUSES = (1.0, 5.0, 20.0, 60.0)
#: Checkpoints on their way: Trainer clears its own away as it goes on.
_STAGED = ".uploads"


def beside(work: Callable[[], T], look: Callable[[], None]) -> T:
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
        look()
        wait([future], LOOK)
    return future.result()


def add_model(store: ModelsStore, job_id: str, attempt: str, directory: Path, look: Callable[[], None]) -> None:
    """Take a finished model into the store, in several tries; `look` raises when it is not wanted any more.

    Raises:
        StorageError: the store could not be reached in any of them.
        UsageError: it refused us in all of them.
    """
    for pause in PAUSES:
        try:
            return beside(lambda: store.add_model(job_id, attempt, directory), look)
        except (StorageError, UsageError) as error:
            logger.warning("job %s: the model is not stored yet, next try in %.0f s: %s", job_id, pause, error)
        end = time.monotonic() + pause
        while time.monotonic() < end:
            look()
            time.sleep(LOOK)
    return beside(lambda: store.add_model(job_id, attempt, directory), look)


class Uploads:
    """The checkpoints of an attempt on their way to the store, one after the other, in a thread.

    Of those that wait only the newest and the best are uploaded. A fault is logged, and the next checkpoint is the next
    try. Where the store is a directory, there is nothing to bring.

    Args:
        store: where they go.
        job_id: the job.
        attempt: the name of the attempt.
        on_kept: gets the steps of each checkpoint that lies in the store; called in any thread.
    """

    def __init__(self, store: ModelsStore, job_id: str, attempt: str, on_kept: Callable[[int], None]) -> None:
        self._on_kept = on_kept
        self._store = store
        self._job_id = job_id
        self._attempt = attempt
        self._waiting: list[Path] = []
        self._changed = threading.Condition()
        self._going = False

    def add(self, checkpoint: Path) -> None:
        """Take a checkpoint that was just written; returns at once."""
        if not self._store.uploads:
            self._on_kept(steps_of(checkpoint))
            return
        staged = checkpoint.parent / _STAGED / checkpoint.name
        _double(checkpoint, staged)
        if not is_whole(staged):  # cleared away meanwhile: there are newer ones
            return
        best = best_of(staged)
        with self._changed:
            passed = [one for one in self._waiting if steps_of(one) != best]
            self._waiting = [*(one for one in self._waiting if one not in passed), staged]
            self._start()
        for one in passed:
            shutil.rmtree(one, ignore_errors=True)

    def drop(self) -> None:
        """Forget those that wait: the model is finished."""
        with self._changed:
            self._waiting = []

    def rest(self, seconds: float) -> bool:
        """Wait until nothing is on its way; return whether that came about in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._going, seconds)

    def finish(self, seconds: float) -> None:
        """Give those that are left so long, and one more try: there will be no further checkpoint."""
        with self._changed:
            self._start()
        self.rest(seconds)

    def _start(self) -> None:
        if self._waiting and not self._going:
            self._going = True
            threading.Thread(target=self._run, name="uploads", daemon=True).start()

    def _run(self) -> None:
        while (checkpoint := self._next()) is not None:
            try:
                self._store.keep_checkpoint(self._job_id, self._attempt, checkpoint)
            except (StorageError, UsageError, OSError) as error:
                logger.warning("job %s: %s is not stored yet: %s", self._job_id, checkpoint.name, error)
                self._put_back(checkpoint)
                return
            self._on_kept(steps_of(checkpoint))
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _next(self) -> Path | None:
        with self._changed:
            if self._waiting:
                return self._waiting.pop(0)
            self._pause()
            return None

    def _put_back(self, checkpoint: Path) -> None:
        with self._changed:
            self._waiting.insert(0, checkpoint)
            self._pause()

    def _pause(self) -> None:
        self._going = False
        self._changed.notify_all()


def _double(checkpoint: Path, staged: Path) -> None:
    """Keep the files under a second name."""
    shutil.rmtree(staged, ignore_errors=True)
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(checkpoint, staged, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)
