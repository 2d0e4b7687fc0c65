"""Restarts of the device process, as long as the worker lives.

A process that dies after doing some work is replaced at once; one that did nothing is replaced after a growing pause.
After several of the latter in a row the worker exits.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from common.errors import Cancelled, CodedError, HugqueueError, ModelError, WorkerError
from common.jobs import VLLM
from common.models.references import split_preload
from common.settings import Settings
from workers.device.client.process import DeviceProcess, Limits, ProcessExit
from workers.device.client.token_budget_cache import TokenBudgetCache
from workers.device.protocol import Open
from workers.models.resolver import ModelPolicy

logger = logging.getLogger(__name__)

#: How often a waiting thread checks whether its chunk was cancelled, in seconds.
POLL_SECONDS = 0.2
#: Deaths while loading a model after which it is not loaded again for that chunk, or at that start.
MAX_LOADING_DEATHS = 2
#: Deaths in a row without a cause, after which the device counts as broken.
MAX_UNEXPLAINED_DEATHS = 5
#: A process that lived this many seconds did not die of a permanent fault of the device.
_HEALTHY_SECONDS = 60.0
#: Longest pause before a process is started again, in seconds.
_MAX_BACKOFF = 30.0


class DeviceRespawner:
    """Keeps a device process running, from its own thread.

    Args:
        settings: device, preloads and limits of the worker.
        batch_sizes: given to each new process.
        prefetch: whether a process prepares the next chunk while it computes one; None: for an engine, which would
            else wait between chunks, and on a GPU; without one, both would use the same cores of a CPU.
    """

    def __init__(
        self, settings: Settings, batch_sizes: TokenBudgetCache | None = None, *, prefetch: bool | None = None
    ) -> None:
        self._device = settings.device if settings.device.startswith("cuda") else "cpu"
        self._batch_sizes = batch_sizes
        self._prefetch = self._device != "cpu" or settings.engine == VLLM if prefetch is None else prefetch
        self._limits = Limits(settings.batch_timeout, settings.load_timeout)
        self._preload = list(map(split_preload, settings.preload))
        self._policy = ModelPolicy.of(settings)
        self._changed = threading.Condition()
        self.current: DeviceProcess | None = None  #: the process that takes requests, if there is one at the moment
        self.broken: HugqueueError | None = None  #: why there will be no further process, though nobody called `stop`
        self.past_fallbacks: Counter[str] = Counter()  #: of the processes that have ended
        self._newest: DeviceProcess | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name=f"device {self._device}", daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Start the first process; `wait_ready` waits for it."""
        self._thread.start()

    def wait_ready(self, cancelled: Callable[[], bool]) -> DeviceProcess:
        """Wait for a process that takes requests, and return it.

        Raises:
            Cancelled: `cancelled` returned True meanwhile, or `stop` was called.
            ModelError: a preload is not available, or kills the process.
            WorkerError: a preload does not fit; no process can be kept alive.
        """
        if self._thread.ident is None:
            raise WorkerError("worker_fault", "This worker has no device process: it was never started.")
        with self._changed:
            while True:
                if cancelled() or self.stopping:
                    raise Cancelled
                if self.current is not None:
                    return self.current
                if self.broken is not None:
                    raise self.broken
                self._changed.wait(POLL_SECONDS)

    def stop(self) -> None:
        """Kill the process, and start no other."""
        self._stopping.set()
        with self._changed:
            newest = self._newest
        if newest is not None:
            newest.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _keep_alive(self) -> None:
        """Run one process after the other. The kernel kills each process with this very thread (PR_SET_PDEATHSIG)."""
        try:
            self._respawn_loop()
        except Exception as error:  # the boundary: without this thread nobody would start another process
            logger.exception("the device process cannot be kept alive")
            self._mark_broken(WorkerError("device_process_dies", f"{type(error).__name__}: {error}"))

    def _respawn_loop(self) -> None:
        preload, fruitless = self._preload, 0
        final: HugqueueError | None
        while not self._stopping.wait(_backoff(fruitless)):
            started = time.monotonic()
            try:
                process = self._run_process(preload)
            except WorkerError as error:  # it did not start: the system may have memory for it later
                fruitless += 1
                final, ended = error if fruitless >= MAX_UNEXPLAINED_DEATHS else None, error.message
            else:
                fruitless = _count_fruitless(process, fruitless, time.monotonic() - started)
                final = _final_error(process, fruitless, preload)
                ended = process.process_exit.failure.message if process.process_exit else ""
                preload = preload if not process.ready else []  # models come back as jobs ask for them
            if self.stopping:
                return
            logger.warning("the device process ended: %s", ended)
            if final is not None:
                self._mark_broken(final)
                return

    def _run_process(self, preload: Sequence[tuple[str, str | None]]) -> DeviceProcess:
        opening = Open(
            policy=self._policy.encode(),
            preload=json.dumps(list(preload)),
            batch_sizes=dict(self._batch_sizes.known()) if self._batch_sizes else {},
            prefetch=self._prefetch,
        )
        process = DeviceProcess(self._device, opening, self._limits, self._note_ready)
        with self._changed:
            self._newest = process
        if self.stopping:
            process.kill()
        process.read_messages()
        with self._changed:
            self.current = None
            self.past_fallbacks = self.past_fallbacks + Counter(process.status.fallbacks)
        return process

    def _note_ready(self) -> None:
        with self._changed:
            self.current = self._newest
            self._changed.notify_all()

    def _mark_broken(self, error: HugqueueError) -> None:
        with self._changed:
            self.broken = error
            self._changed.notify_all()


def fatal_load_error(model: str, process_exit: ProcessExit) -> CodedError:
    """Return the error of a model that must not be loaded once more.

    SIGKILL is what the kernel sends when memory runs out: a larger machine may succeed, and so may one whose
    disk or network is not stuck. A crash (a segmentation fault, an abort) would happen there too.
    """
    if process_exit.stuck:
        return WorkerError("load_timeout", f"Loading {model} is stuck. {process_exit.failure.message}")
    message = f"Loading {model} killed the device process {MAX_LOADING_DEATHS} times. {process_exit.failure.message}"
    return WorkerError("no_memory", message) if process_exit.killed else ModelError("model_kills_worker", message)


def _final_error(
    process: DeviceProcess, fruitless: int, preload: Sequence[tuple[str, str | None]]
) -> HugqueueError | None:
    """Return why no further process is to be started, or None to continue.

    Args:
        process: the one that ended.
        fruitless: number of processes in a row that did nothing.
        preload: models that it was to load at its start.
    """
    process_exit = process.process_exit
    if process.refusal is not None or process_exit is None:
        return process.refusal
    if not process.ready and not process_exit.idle and fruitless >= MAX_LOADING_DEATHS:
        return fatal_load_error(" or ".join(model or task for task, model in preload), process_exit)
    if fruitless >= MAX_UNEXPLAINED_DEATHS:
        what = f"ended {fruitless} times in a row without doing anything"
        return WorkerError("device_process_dies", f"The device process {what}. {process_exit.failure.message}")
    return None


def _count_fruitless(process: DeviceProcess, before: int, lifetime: float) -> int:
    """Return how many processes in a row, this one the last, did nothing.

    One that died over records or over a job's model is replaced at once: otherwise a chunk of records that all
    crash would take hours, and such deaths are counted with the requests.
    """
    if process.served or (process.ready and lifetime >= _HEALTHY_SECONDS):
        return 0
    return 1 if process.ready and process.process_exit and not process.process_exit.idle else before + 1


def _backoff(fruitless: int) -> float:
    """Return the seconds to wait before the next start, given the number of processes in a row that did nothing."""
    return min(_MAX_BACKOFF, 2.0 ** (fruitless - 2)) if fruitless > 1 else 0.0
