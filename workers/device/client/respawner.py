"""The device process and its successors: one is alive as long as the worker is.

Starts a fresh one when the last has died: at once after one that did its work, with growing pauses after one that
did nothing, and no more when that will not change: the worker is to end then. Knows no requests.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import CodedError, HugqueueError, ModelError, WorkerError
from common.records import Json
from common.settings import Settings
from workers.device.client.batch_size_cache import Budgets
from workers.device.client.process import Death, DeviceChild, Limits
from workers.device.protocol import Message
from workers.inference.core.runner import Cancelled
from workers.models.resolver import ModelPolicy, is_path

logger = logging.getLogger(__name__)

#: How often a waiting thread looks whether its chunk was given up, in seconds.
LOOK = 0.2
#: A model whose loading kills the process so often is not loaded again for that chunk, or at that start.
LOADING_DEATHS = 2
#: Deaths in a row that nobody is to blame for, after which the device counts as broken.
UNEXPLAINED_DEATHS = 5
#: A process that lived so many seconds did not die of what is wrong with the device at all times.
_HEALTHY = 60.0
#: Longest pause before a process is started again, in seconds.
_LONGEST_PAUSE = 30.0


class DeviceLives:
    """Keeps a device process alive, in a thread of its own.

    Args:
        settings: device, preloads and limits of the worker.
        budgets: what is told to each new process about the size of batches.
        looks_ahead: whether it begins with the next chunk while it computes one; None: where it does not compute with
            the very cores that this takes.
    """

    def __init__(self, settings: Settings, budgets: Budgets | None = None, *, looks_ahead: bool | None = None) -> None:
        self._budgets = budgets
        self._device = settings.device if settings.device.startswith("cuda") else "cpu"
        self._looks_ahead = self._device != "cpu" if looks_ahead is None else looks_ahead
        self._limits = Limits(settings.batch_timeout, settings.load_timeout)
        self._preload = [_preload(text) for text in settings.preload]
        self._policy = ModelPolicy.of(settings)
        self._changed = threading.Condition()
        self._ready: DeviceChild | None = None  #: guarded by `_changed`, as are the next two
        self._newest: DeviceChild | None = None
        self._broken: HugqueueError | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name=f"device {self._device}", daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @property
    def broken(self) -> HugqueueError | None:
        """Why there will be no other process, though nobody called `stop`."""
        return self._broken

    def now(self) -> DeviceChild | None:
        """Return the process that takes requests, if there is one at the moment."""
        return self._ready

    def start(self) -> None:
        """Start the first process; `ready` waits for it."""
        self._thread.start()

    def ready(self, given_up: Callable[[], bool]) -> DeviceChild:
        """Return a process that takes requests, waiting for it.

        Raises:
            Cancelled: `given_up` became true meanwhile, or `stop` was called.
            ModelError: a preload cannot be had, or kills the process.
            WorkerError: a preload does not fit; no process can be kept alive.
        """
        if self._thread.ident is None:
            raise WorkerError("worker_fault", "This worker has no device process: it was never started.")
        with self._changed:
            while True:
                if given_up() or self.stopping:
                    raise Cancelled
                if self._ready is not None:
                    return self._ready
                if self._broken is not None:
                    raise self._broken
                self._changed.wait(LOOK)

    def stop(self) -> None:
        """End the process at once, for good."""
        self._stopping.set()
        with self._changed:
            newest = self._newest
        if newest is not None:
            newest.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_alive(self) -> None:
        """Live one life after the other. The kernel ends each process with this very thread (`workers.device`)."""
        try:
            self._live_on()
        except Exception as fault:  # the boundary: without this thread nobody would start another process
            logger.exception("the device process cannot be kept alive")
            self._break(WorkerError("device_process_dies", f"{type(fault).__name__}: {fault}"))

    def _live_on(self) -> None:
        preload, fruitless = self._preload, 0
        error: HugqueueError | None
        while not self._stopping.wait(_pause(fruitless)):
            started = time.monotonic()
            try:
                child = self._live(preload)
            except WorkerError as fault:  # it did not even start: the system may have room for it in a moment
                fruitless += 1
                error, ended = fault if fruitless >= UNEXPLAINED_DEATHS else None, fault.message
            else:
                fruitless = _fruitless(child, fruitless, time.monotonic() - started)
                error, ended = _final(child, fruitless, preload), child.death.failure.message if child.death else ""
                preload = preload if not child.ready else []  # models come back as they are asked for
            if self.stopping:
                return
            logger.warning("the device process ended: %s", ended)
            if error is not None:
                self._break(error)
                return

    def _live(self, preload: Sequence[tuple[str, str | None]]) -> DeviceChild:
        known = dict(self._budgets.known()) if self._budgets else {}
        body: dict[str, Json] = {"policy": self._policy.encode(), "preload": [list(pair) for pair in preload]}
        body |= {"budgets": known, "looks_ahead": self._looks_ahead}
        opening = Message("open", 0, body)
        child = DeviceChild(self._device, opening, self._limits, self._note_ready)
        with self._changed:
            self._newest = child
        if self.stopping:
            child.kill()
        child.converse()
        with self._changed:
            self._ready = None
        return child

    def _note_ready(self) -> None:
        with self._changed:
            self._ready = self._newest
            self._changed.notify_all()

    def _break(self, error: HugqueueError) -> None:
        with self._changed:
            self._broken = error
            self._changed.notify_all()


def kills_worker(model: str, death: Death) -> CodedError:
    """Return the error of a model that is not to be loaded once more.

    SIGKILL is what the kernel sends when memory runs out: a larger machine may do what this one cannot. So may one
    whose disk or network is not stuck. A crash (a segmentation fault, an abort) would be the same there.
    """
    if death.stuck:
        return WorkerError("load_timeout", f"Loading {model} is stuck. {death.failure.message}")
    message = f"Loading {model} killed the device process {LOADING_DEATHS} times. {death.failure.message}"
    return WorkerError("no_memory", message) if death.killed else ModelError("model_kills_worker", message)


def _final(child: DeviceChild, fruitless: int, preload: Sequence[tuple[str, str | None]]) -> HugqueueError | None:
    """Return why no other process is to be started after this one, after so many in a row that did nothing."""
    death = child.death
    if child.refusal is not None or death is None:
        return child.refusal
    if not child.ready and not death.idle and fruitless >= LOADING_DEATHS:
        return kills_worker(" or ".join(model or task for task, model in preload), death)
    if fruitless >= UNEXPLAINED_DEATHS:
        what = f"ended {fruitless} times in a row without having done anything"
        return WorkerError("device_process_dies", f"The device process {what}. {death.failure.message}")
    return None


def _fruitless(child: DeviceChild, before: int, lived: float) -> int:
    """Return how many processes in a row, this one the last, did nothing.

    One that died over records or over a job's model is replaced at once: a chunk of nothing but poison would take
    hours otherwise, and such deaths are counted with the requests.
    """
    if child.served or (child.ready and lived >= _HEALTHY):
        return 0
    return 1 if child.ready and child.death and not child.death.idle else before + 1


def _pause(fruitless: int) -> float:
    """Return how long to wait before the next start, after so many processes in a row that answered nothing."""
    return min(_LONGEST_PAUSE, 2.0 ** (fruitless - 2)) if fruitless > 1 else 0.0


def _preload(text: str) -> tuple[str, str | None]:
    """Return task and model of `TASK` or `TASK=MODEL`; a path becomes whole, as the resolver wants it."""
    task, _, model = text.partition("=")
    return task, str(Path(model).expanduser().absolute()) if is_path(model) else model or None
