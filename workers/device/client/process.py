"""One device process as the Celery process sees it: its start, its messages, its end.

It keeps track of the request the process works on and of the records about to run, so that a crash can be traced to
them. It starts no second process; `workers.device.client.respawner` does.
"""

import contextlib
import dataclasses
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import CodedError, ModelError, WorkerError
from common.records import Failure
from workers.child_env import child_env
from workers.device import protocol

logger = logging.getLogger(__name__)

#: How often a silent process is checked, in seconds.
_POLL_SECONDS = 1.0
#: Seconds that a process without work may take to start, or to accept a request; beyond that it counts as frozen.
_IDLE_SECONDS = 60.0
#: Seconds that a load may continue when no request needs it any more: it blocks other requests.
_UNWANTED_SECONDS = 10.0
#: Bytes read, written or allocated that count as progress of a load; a log line or a message is less.
_PROGRESS_BYTES = 1024 * 1024
#: Batches of a request that are traced; one more is noted, as the end of the last.
MAX_TRACED_BATCHES = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """How many seconds a device process may be silent before it is killed."""

    batch: float  #: while it runs a batch
    load: float  #: while it downloads or loads a model

    @property
    def poll_seconds(self) -> float:
        """How often to check a silent process."""
        return min(_POLL_SECONDS, self.batch / 4, self.load / 4)


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """Why a request has no answer: the process ended before it gave one."""

    failure: Failure  #: for a record that is to blame
    suspects: tuple[int, ...] = ()  #: the positions that were about to run
    loading: bool = False  #: it ended while it loaded the request's model
    blamed: bool = True  #: False if it worked on another request, or on none
    idle: bool = False  #: it worked on no request at all
    killed: bool = False  #: by a SIGKILL from elsewhere, such as the kernel sends when memory runs out
    stuck: bool = False  #: we killed it because it gave no sign of life

    @property
    def stuck_loading(self) -> bool:
        """Whether loading the request's model made no progress."""
        return self.loading and self.stuck


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A pending request: its stages, then its answer or the process's end."""

    id: int
    job: str  #: requests of one job wait for the same model
    events: "queue.SimpleQueue[protocol.Event | ProcessExit]" = field(default_factory=queue.SimpleQueue)
    #: When each batch began, in seconds since the epoch, and the positions that were about to run; None: not traced.
    batches: list[tuple[float, frozenset[int]]] | None = None
    finished_at: float = 0.0  #: when the process was done with the last one


@dataclass(slots=True)
class _CurrentRequest:
    """The request that the process works on; 0 is its own start."""

    id: int
    job: str = ""
    loading: bool = True
    suspects: tuple[int, ...] = ()
    silent: float = 0.0  #: seconds without a sign of life, counted only while this process was awake
    unwanted: float = 0.0  #: seconds without a request that waits for it


class DeviceProcess:
    """A started device process.

    Args:
        device: `cpu` or `cuda:0`.
        opening: the first message.
        limits: how long it may be silent.
        on_ready: called once it takes requests.

    Raises:
        WorkerError: `device_process_dies`, it cannot be started.
    """

    def __init__(self, device: str, opening: protocol.Open, limits: Limits, on_ready: Callable[[], None]) -> None:
        self._limits = limits
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._pending: dict[int, PendingRequest] = {}
        self._ended = False
        self._current: _CurrentRequest | None = None
        self._idle_for = 0.0  #: seconds without work, though it was to start, or to take up or answer a request
        self._finished: set[int] = set()  #: requests that are computed, but not yet answered
        self._cancelled: set[int] = set()  #: requests that were cancelled and not yet answered
        self._kill_reason: Failure | None = None  #: why we kill it
        self.ready = False
        self.served = False  #: it answered at least one request
        self.refusal: CodedError | None = None
        self.process_exit: ProcessExit | None = None
        self.status = protocol.DeviceStatus()
        self._socket, self._process = _spawn(device)
        self._activity = _ProcessActivity(self._process.pid)
        self._send(opening)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send_request(self, request: protocol.Run, job: str, *, traced: bool = False) -> PendingRequest:
        """Send a request of a job; all its messages arrive at the pending request, including the process's end."""
        pending = PendingRequest(request.id, job, batches=[] if traced else None)
        with self._lock:
            if self._ended:
                pending.events.put(ProcessExit(Failure("worker_died", "it had ended"), blamed=False))
                return pending
            self._pending[pending.id] = pending
        self._send(request)
        return pending

    def cancel(self, id_: int) -> None:
        """Cancel a request; it is answered `Aborted`, or the process is killed if it only loads for that one."""
        with self._lock:
            self._cancelled.add(id_)
        self._send(protocol.Cancel(id_))

    def kill(self) -> None:
        """Kill the process and all its child processes at once."""
        if self._process.returncode is not None:  # its id may belong to another by now
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("device process %d is gone already", self._process.pid)

    def read_messages(self) -> None:
        """Handle the process's messages until it ends, then notify all waiting threads. One thread calls this, once."""
        try:
            while True:
                message = self._socket.receive(self._limits.poll_seconds)
                if message is None:
                    self._check_liveness(self._limits.poll_seconds)
                else:
                    self._handle(message)
        except protocol.SocketClosed:
            logger.debug("device process %d closed its socket", self.pid)
        except protocol.ProtocolError as error:
            logger.error("device process %d violated the protocol: %s", self.pid, error)
            self._kill_reason = Failure("worker_died", "The device process sent bytes that are not a message.")
        finally:  # in any case: waiting threads must learn of the end
            self.kill()
            self._close(self._process.wait())

    def _send(self, message: protocol.Message) -> None:
        try:
            self._socket.send(message)
        except protocol.SocketClosed:  # it died, or is about to: `read_messages` notices that and notifies all threads
            self.kill()

    # Liveness: silence is counted by polls, not by the clock, so that a suspend of the machine does not count.

    def _check_liveness(self, seconds: float) -> None:
        current, limits = self._current, self._limits
        if current is None:
            self._check_idle(seconds)
        elif not current.loading:
            current.silent += seconds
            if current.silent >= limits.batch:
                self._kill_stuck(f"It gave no sign of life for {limits.batch:g} s (HUGQUEUE_BATCH_TIMEOUT).")
        else:  # a load reports nothing for minutes; the kernel's counters show whether it makes progress
            current.silent = 0.0 if self._activity.has_progressed() else current.silent + seconds
            current.unwanted = 0.0 if self._is_wanted(current) else current.unwanted + seconds
            if current.silent >= limits.load:
                self._kill_stuck(f"It made no progress for {limits.load:g} s (HUGQUEUE_LOAD_TIMEOUT).")
            elif current.unwanted >= _UNWANTED_SECONDS:
                self._kill_stuck(f"It was still loading {_UNWANTED_SECONDS:g} s after that was cancelled.")

    def _is_wanted(self, current: _CurrentRequest) -> bool:
        """Whether any request waits for what is loaded; the start waits for preloads."""
        with self._lock:
            jobs = {pending.job for id_, pending in self._pending.items() if id_ not in self._cancelled}
        return current.id == 0 or current.job in jobs

    def _check_idle(self, seconds: float) -> None:
        """Find a process that was frozen while it had nothing to do: it accepts no request, or answers none."""
        with self._lock:
            waiting, answering = self._pending.keys() - self._finished, self._pending.keys() & self._finished
        self._idle_for = self._idle_for + seconds if waiting or answering or not self.ready else 0.0
        limit = min(_IDLE_SECONDS, self._limits.batch) if self.ready else _IDLE_SECONDS
        if answering and not waiting:  # encoding the outputs may take long
            limit = self._limits.batch
        if self._idle_for >= limit:
            self._kill_stuck(f"It {'took up no request' if self.ready else 'did not start'} for {limit:g} s.")

    def _kill_stuck(self, reason: str) -> None:
        if self._kill_reason is None:
            logger.error("killing device process %d: %s", self.pid, reason)
            self._kill_reason = Failure("timeout", reason)
            self.kill()

    # Messages

    def _handle(self, message: protocol.FromDevice) -> None:
        self._idle_for = 0.0
        match message:
            case protocol.Started():
                pending = self._pending.get(message.id)
                self._current = _CurrentRequest(message.id, pending.job if pending else "")
            case protocol.Finished():
                self._current = None
                if pending := self._pending.get(message.id):
                    self._finished.add(message.id)
                    pending.finished_at = time.time()
            case protocol.DeviceStatus():
                self.status = message
            case protocol.Ready():
                self._current = None
                self.ready = True
                self._on_ready()
            case protocol.Failed(id=0):
                self.refusal = error_of(message)
            case protocol.Result() | protocol.Failed() | protocol.Aborted():
                self._deliver(message)
            case protocol.Stage() | protocol.Running() | protocol.Batch() | protocol.Alive():
                self._note_progress(message)

    def _note_progress(self, message: protocol.Stage | protocol.Running | protocol.Batch | protocol.Alive) -> None:
        current = self._current
        if current is None or current.id != message.id:  # the last message of a thread that downloads
            return
        current.silent = 0.0
        current.loading = isinstance(message, protocol.Stage) and bool(message.text)
        pending = self._pending.get(message.id)
        if isinstance(message, protocol.Batch):
            current.suspects = tuple(message.positions)
            if pending and pending.batches is not None and len(pending.batches) <= MAX_TRACED_BATCHES:
                pending.batches.append((time.time(), frozenset(message.positions)))
        elif isinstance(message, protocol.Running):
            if pending and pending.batches:
                pending.batches.clear()  # what came before only measured the model
        elif isinstance(message, protocol.Stage):
            if pending:
                pending.events.put(message)
            elif message.text:
                logger.info("%s", message.text)

    def _deliver(self, answer: protocol.Answer) -> None:
        """Pass an answer on. The process may still work on it: a cancelled load is answered before it ends."""
        self.served = True
        with self._lock:
            pending = self._pending.pop(answer.id, None)
            self._cancelled.discard(answer.id)
        self._finished.discard(answer.id)
        if pending is not None:
            pending.events.put(answer)

    # The end

    def _close(self, status: int) -> None:
        self.process_exit = process_exit = self._make_exit(status)
        with self._lock:
            self._ended = True
            left, self._pending = self._pending, {}
        self._socket.close()
        for pending in left.values():
            pending.events.put(self._exit_for(pending, process_exit))

    def _make_exit(self, status: int) -> ProcessExit:
        current = self._current
        failure = self._kill_reason or Failure("worker_died", f"The device process died: {describe_exit(status)}.")
        killed = status == -signal.SIGKILL and self._kill_reason is None
        if current is None:
            return ProcessExit(failure, idle=True, killed=killed)
        stuck = self._kill_reason is not None
        return ProcessExit(failure, current.suspects, current.loading, killed=killed, stuck=stuck)

    def _exit_for(self, pending: PendingRequest, process_exit: ProcessExit) -> ProcessExit:
        """Return the exit as one request sees it: all requests of a job are to blame for loading its model."""
        current = self._current
        if current is None or current.id == pending.id:
            return dataclasses.replace(process_exit, blamed=current is not None)
        shared = current.loading and current.job == pending.job
        return dataclasses.replace(process_exit, suspects=(), loading=shared, blamed=shared)


class _ProcessActivity:
    """Whether a process or one of its session reads, writes or allocates, as far as /proc shows; without it, never."""

    def __init__(self, pid: int) -> None:
        self._session = str(pid)
        self._seen: dict[str, int] = {}

    def has_progressed(self) -> bool:
        """Return whether the process did a noticeable amount since this was last true."""
        now = self._measure()
        moved = any(abs(now[name] - self._seen.get(name, 0)) >= _PROGRESS_BYTES for name in now)
        if moved or not self._seen:
            self._seen = now
        return moved

    def _measure(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for directory in self._processes():
            with contextlib.suppress(OSError, ValueError, IndexError):
                found["resident"] += int((directory / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                for line in (directory / "io").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in ("rchar", "wchar", "read_bytes"):
                        found[name] += int(value)
        return found

    def _processes(self) -> Iterator[Path]:
        """Yield the directories of the process and of those it started, such as an engine's, which load its model."""
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                if (directory / "stat").read_text().rpartition(")")[2].split()[3] == self._session:
                    yield directory


def describe_exit(status: int) -> str:
    """Return how a process ended, in words; `status` is the return code of `subprocess`."""
    if status == protocol.DEVICE_LOST:
        return "the GPU reported an error that ruined its context (see the worker's log)"
    if status == protocol.ENGINE_DIED:
        return "the process of its engine has ended (see the worker's log)"
    if status >= 0:
        return f"it exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
    more = {"SIGKILL": ", which the kernel sends when memory runs out", "SIGSEGV": ", a segmentation fault"}
    return f"{name}{more.get(name, '')}"


def error_of(failed: protocol.Failed) -> CodedError:
    """Return the error that a message stands for."""
    return (ModelError if failed.error == "model" else WorkerError)(failed.code, failed.message)


def _spawn(device: str) -> tuple[protocol.MessageSocket[protocol.FromDevice], "subprocess.Popen[bytes]"]:
    """Start the process: fresh, never forked, in its own session, with one end of a socket pair."""
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.device.server", str(theirs.fileno()), device],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=child_env(device),
            )
            return protocol.MessageSocket(ours.detach(), protocol.FromDevice), process
    except OSError as error:  # too many open files or processes, no memory to fork
        raise WorkerError("device_process_dies", f"The device process cannot be started: {error}") from error
