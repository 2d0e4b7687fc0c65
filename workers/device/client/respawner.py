"""The device process and its successors: one is alive as long as the worker is.

Starts a fresh one when the last has died: at once after one that did its work, with growing pauses after one that
did nothing, and no more when that will not change: the worker is to end then. Knows no requests.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import Cancelled, CodedError, HugqueueError, ModelError, WorkerError
from common.records import Json
from common.settings import Settings
from workers.device.client.batch_size_cache import BatchSizeCache
from workers.device.client.process import DeviceProcess, Limits, ProcessExit
from workers.device.protocol import Message
from workers.models.resolver import ModelPolicy, is_path

logger = logging.getLogger(__name__)

#: How often a waiting thread looks whether its chunk was given up, in seconds.
POLL_SECONDS = 0.2
#: A model whose loading kills the process so often is not loaded again for that chunk, or at that start.
MAX_LOADING_DEATHS = 2
#: Deaths in a row that nobody is to blame for, after which the device counts as broken.
MAX_UNEXPLAINED_DEATHS = 5
#: A process that lived so many seconds did not die of what is wrong with the device at all times.
_HEALTHY_SECONDS = 60.0
#: Longest pause before a process is started again, in seconds.
_MAX_BACKOFF = 30.0


class DeviceRespawner:
    """Keeps a device process alive, in a thread of its own.

    Args:
        settings: device, preloads and limits of the worker.
        budgets: what is told to each new process about the size of batches.
        prefetch: whether it begins with the next chunk while it computes one; None: where it does not compute with
            the very cores that this takes.
    """

    def __init__(
        self, settings: Settings, budgets: BatchSizeCache | None = None, *, prefetch: bool | None = None
    ) -> None:
        self._batch_sizes = budgets
        self._device = settings.device if settings.device.startswith("cuda") else "cpu"
        self._prefetch = self._device != "cpu" if prefetch is None else prefetch
        self._limits = Limits(settings.batch_timeout, settings.load_timeout)
        self._preload = [_preload(text) for text in settings.preload]
        self._policy = ModelPolicy.of(settings)
        self._changed = threading.Condition()
        self._ready: DeviceProcess | None = None  #: guarded by `_changed`, as are the next two
        self._newest: DeviceProcess | None = None
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

    def now(self) -> DeviceProcess | None:
        """Return the process that takes requests, if there is one at the moment."""
        return self._ready

    def start(self) -> None:
        """Start the first process; `ready` waits for it."""
        self._thread.start()

    def ready(self, cancelled: Callable[[], bool]) -> DeviceProcess:
        """Return a process that takes requests, waiting for it.

        Raises:
            Cancelled: `cancelled` became true meanwhile, or `stop` was called.
            ModelError: a preload cannot be had, or kills the process.
            WorkerError: a preload does not fit; no process can be kept alive.
        """
        if self._thread.ident is None:
            raise WorkerError("worker_fault", "This worker has no device process: it was never started.")
        with self._changed:
            while True:
                if cancelled() or self.stopping:
                    raise Cancelled
                if self._ready is not None:
                    return self._ready
                if self._broken is not None:
                    raise self._broken
                self._changed.wait(POLL_SECONDS)

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
            self._respawn_loop()
        except Exception as fault:  # the boundary: without this thread nobody would start another process
            logger.exception("the device process cannot be kept alive")
            self._mark_broken(WorkerError("device_process_dies", f"{type(fault).__name__}: {fault}"))

    def _respawn_loop(self) -> None:
        preload, fruitless = self._preload, 0
        error: HugqueueError | None
        while not self._stopping.wait(_backoff(fruitless)):
            started = time.monotonic()
            try:
                child = self._run_process(preload)
            except WorkerError as fault:  # it did not even start: the system may have room for it in a moment
                fruitless += 1
                error, ended = fault if fruitless >= MAX_UNEXPLAINED_DEATHS else None, fault.message
            else:
                fruitless = _count_fruitless(child, fruitless, time.monotonic() - started)
                error, ended = (
                    _final_error(child, fruitless, preload),
                    child.process_exit.failure.message if child.process_exit else "",
                )
                preload = preload if not child.ready else []  # models come back as they are asked for
            if self.stopping:
                return
            logger.warning("the device process ended: %s", ended)
            if error is not None:
                self._mark_broken(error)
                return

    def _run_process(self, preload: Sequence[tuple[str, str | None]]) -> DeviceProcess:
        known = dict(self._batch_sizes.known()) if self._batch_sizes else {}
        body: dict[str, Json] = {"policy": self._policy.encode(), "preload": [list(pair) for pair in preload]}
        body |= {"budgets": known, "prefetch": self._prefetch}
        opening = Message("open", 0, body)
        child = DeviceProcess(self._device, opening, self._limits, self._note_ready)
        with self._changed:
            self._newest = child
        if self.stopping:
            child.kill()
        child.read_messages()
        with self._changed:
            self._ready = None
        return child

    def _note_ready(self) -> None:
        with self._changed:
            self._ready = self._newest
            self._changed.notify_all()

    def _mark_broken(self, error: HugqueueError) -> None:
        with self._changed:
            self._broken = error
            self._changed.notify_all()


def fatal_load_error(model: str, process_exit: ProcessExit) -> CodedError:
    """Return the error of a model that is not to be loaded once more.

    SIGKILL is what the kernel sends when memory runs out: a larger machine may do what this one cannot. So may one
    whose disk or network is not stuck. A crash (a segmentation fault, an abort) would be the same there.
    """
    if process_exit.stuck:
        return WorkerError("load_timeout", f"Loading {model} is stuck. {process_exit.failure.message}")
    message = f"Loading {model} killed the device process {MAX_LOADING_DEATHS} times. {process_exit.failure.message}"
    return WorkerError("no_memory", message) if process_exit.killed else ModelError("model_kills_worker", message)


def _final_error(
    child: DeviceProcess, fruitless: int, preload: Sequence[tuple[str, str | None]]
) -> HugqueueError | None:
    """Return why no other process is to be started after this one, after so many in a row that did nothing."""
    process_exit = child.process_exit
    if child.refusal is not None or process_exit is None:
        return child.refusal
    if not child.ready and not process_exit.idle and fruitless >= MAX_LOADING_DEATHS:
        return fatal_load_error(" or ".join(model or task for task, model in preload), process_exit)
    if fruitless >= MAX_UNEXPLAINED_DEATHS:
        what = f"ended {fruitless} times in a row without having done anything"
        return WorkerError("device_process_dies", f"The device process {what}. {process_exit.failure.message}")
    return None


def _count_fruitless(child: DeviceProcess, before: int, lifetime: float) -> int:
    """Return how many processes in a row, this one the last, did nothing.

    One that died over records or over a job's model is replaced at once: a chunk of nothing but poison would take
    hours otherwise, and such deaths are counted with the requests.
    """
    if child.served or (child.ready and lifetime >= _HEALTHY_SECONDS):
        return 0
    return 1 if child.ready and child.process_exit and not child.process_exit.idle else before + 1


def _backoff(fruitless: int) -> float:
    """Return how long to wait before the next start, after so many processes in a row that answered nothing."""
    return min(_MAX_BACKOFF, 2.0 ** (fruitless - 2)) if fruitless > 1 else 0.0


def _preload(text: str) -> tuple[str, str | None]:
    """Return task and model of `TASK` or `TASK=MODEL`; a path becomes whole, as the resolver wants it."""
    task, _, model = text.partition("=")
    return task, str(Path(model).expanduser().absolute()) if is_path(model) else model or None
