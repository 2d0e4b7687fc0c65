"""One life of a device process, seen from the Celery process: its start, its messages, its end.

Knows which request it is at and which records are about to run, so that its death can be laid at the right door.
Knows no chunks beyond that, and starts no second life: that is `workers.device.client.respawner`.
"""

import dataclasses
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import CodedError, ModelError, WorkerError
from common.records import Failure, Json
from workers.child_env import child_env
from workers.device.client.process_activity import ProcessActivity
from workers.device.protocol import DEVICE_LOST, Channel, ChannelClosed, Message, ProtocolError, integers

logger = logging.getLogger(__name__)

#: How often a silent process is looked at, in seconds.
_POLL_SECONDS = 1.0
#: How long a process that is at nothing may take to start, or to take up a request, in seconds: it is frozen then.
_IDLE_SECONDS = 60.0
#: How long a load may go on that nobody waits for any longer, in seconds: it is in the way of other requests.
_UNWANTED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """For how many seconds a device process may give no sign of life before it is killed."""

    batch: float  #: while it runs a batch
    load: float  #: while it fetches or loads a model

    @property
    def poll_seconds(self) -> float:
        """How often to look at a silent process."""
        return min(_POLL_SECONDS, self.batch / 4, self.load / 4)


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """Why a request has no answer: the process died before it gave one."""

    failure: Failure  #: what a record gets that is to blame
    suspects: tuple[int, ...] = ()  #: the positions that were about to run
    loading: bool = False  #: it died while it loaded the request's model
    blamed: bool = True  #: False if it was at another request, or at none
    idle: bool = False  #: it was at no request at all
    killed: bool = False  #: by a SIGKILL that was not ours: so the kernel ends what takes too much memory
    stuck: bool = False  #: we ended it, as it gave no sign of life


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request in hand: what the process says about it, then its answer or the process's death."""

    id: int
    job: str  #: whose request it is: those of one job wait for the same model
    events: "queue.SimpleQueue[Message | ProcessExit]" = field(default_factory=queue.SimpleQueue)


@dataclass(slots=True)
class _CurrentRequest:
    """The request that the process is at; 0 is its own start."""

    id: int
    job: str = ""
    loading: bool = True
    suspects: tuple[int, ...] = ()
    silent: float = 0.0  #: seconds without a sign of life, as far as this process was awake to hear one
    unwanted: float = 0.0  #: seconds for which nobody has waited for it


class DeviceProcess:
    """A started device process.

    Args:
        device: `cpu` or `cuda:0`.
        opening: the first message.
        limits: for how long it may be silent.
        on_ready: called once it takes requests.

    Raises:
        WorkerError: `device_process_dies`, it cannot be started.
    """

    def __init__(self, device: str, opening: Message, limits: Limits, on_ready: Callable[[], None]) -> None:
        self._limits = limits
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._pending: dict[int, PendingRequest] = {}
        self._ended = False
        self._current: _CurrentRequest | None = None
        self._idle_for = 0.0  #: seconds at nothing, though it was to start, or to take up or answer a request
        self._computed: set[int] = set()  #: requests that are computed, but not yet answered
        self._cancelled: set[int] = set()  #: requests that were given up and not yet answered
        self._kill_reason: Failure | None = None  #: why we end it ourselves
        self.ready = False
        self.served = False  #: it answered at least one request
        self.refusal: CodedError | None = None
        self.process_exit: ProcessExit | None = None  #: once it is over
        self.status: dict[str, Json] = {"models": [], "free": None, "total": None}
        self._channel, self._process = _spawn(device)
        self._activity = ProcessActivity(self._process.pid)
        self._send(opening)

    @property
    def pid(self) -> int:
        """The process's id, for logs and for tests that kill it."""
        return self._process.pid

    def send_request(self, request: Message, job: str) -> PendingRequest:
        """Send a job's request; what comes of it arrives at the exchange, the process's death included."""
        pending = PendingRequest(request.id, job)
        with self._lock:
            if self._ended:
                pending.events.put(ProcessExit(Failure("worker_died", "it had ended"), blamed=False))
                return pending
            self._pending[pending.id] = pending
        self._send(request)
        return pending

    def cancel(self, id_: int) -> None:
        """Ask the process to give a request up; it answers `cancelled`, or is killed if it only loads for that one."""
        with self._lock:
            self._cancelled.add(id_)
        self._send(Message("cancel", id_))

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        if self._process.returncode is not None:  # its id may belong to another by now
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("device process %d is gone already", self._process.pid)

    def read_messages(self) -> None:
        """Hear the process out until it ends, then tell everyone who waits. One thread calls this, once."""
        try:
            while True:
                message = self._channel.receive(self._limits.poll_seconds)
                if message is None:
                    self._check_liveness(self._limits.poll_seconds)
                else:
                    self._handle(message)
        except ChannelClosed:
            logger.debug("device process %d closed its socket", self.pid)
        except ProtocolError as error:
            logger.error("device process %d does not speak the protocol: %s", self.pid, error)
            self._kill_reason = Failure("worker_died", "The device process sent what is no message.")
        finally:  # whatever it was: those who wait must hear of the end
            self.kill()
            self._close(self._process.wait())

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except ChannelClosed:  # it died, or is about to: `converse` sees that and tells everyone
            self.kill()

    def _check_liveness(self, seconds: float) -> None:
        """Count silence by looks, not by the clock: a process that was suspended itself has missed nothing."""
        current = self._current
        if current is None:
            self._check_idle(seconds)
        elif current.loading:
            self._check_load(current, seconds)
        else:
            current.silent += seconds
            if current.silent >= self._limits.batch:
                self._kill_stuck(f"It gave no sign of life for {self._limits.batch:g} s (HUGQUEUE_BATCH_TIMEOUT).")

    def _check_load(self, current: _CurrentRequest, seconds: float) -> None:
        """Find a load that is stuck, or that nobody waits for. One says nothing for minutes while it gets on well."""
        current.silent = 0.0 if self._activity.has_moved() else current.silent + seconds
        current.unwanted = 0.0 if self._is_wanted(current) else current.unwanted + seconds
        if current.silent >= self._limits.load:
            self._kill_stuck(f"It got no further for {self._limits.load:g} s (HUGQUEUE_LOAD_TIMEOUT).")
        elif current.unwanted >= _UNWANTED_SECONDS:
            self._kill_stuck(f"It was still loading {_UNWANTED_SECONDS:g} s after that was given up.")

    def _is_wanted(self, current: _CurrentRequest) -> bool:
        """Whether any request waits for what is loaded; its own start waits for preloads."""
        with self._lock:
            waiting = {id_: pending.job for id_, pending in self._pending.items() if id_ not in self._cancelled}
        return current.id == 0 or current.job in waiting.values()

    def _check_idle(self, seconds: float) -> None:
        """Find a process that was frozen while it had nothing to do: it takes up no request, or answers none."""
        with self._lock:
            waiting, answering = (
                bool(self._pending.keys() - self._computed),
                bool(self._pending.keys() & self._computed),
            )
        self._idle_for = self._idle_for + seconds if waiting or answering or not self.ready else 0.0
        limit = min(_IDLE_SECONDS, self._limits.batch) if self.ready else _IDLE_SECONDS
        if answering and not waiting:  # to encode what was computed may take its time
            limit = self._limits.batch
        if self._idle_for >= limit:
            self._kill_stuck(f"It {'took up no request' if self.ready else 'did not start'} for {limit:g} s.")

    def _kill_stuck(self, silence: str) -> None:
        if self._kill_reason is None:
            logger.error("killing device process %d: %s", self.pid, silence)
            self._kill_reason = Failure("timeout", silence)
            self.kill()

    def _handle(self, message: Message) -> None:
        self._idle_for = 0.0
        if message.kind == "begun":
            self._start_request(message.id)
        elif message.kind == "over":
            self._current = None
            if message.id in self._pending:
                self._computed.add(message.id)
        elif message.kind in ("stage", "batch", "tick"):
            self._note_progress(message)
        elif message.kind == "status":
            self.status = dict(message.body)
        elif message.kind == "ready":
            self._current = None
            self.ready = True
            self._on_ready()
        elif message.kind == "refused":
            self.refusal = error_of(message)
        elif message.kind in ("result", "failed", "cancelled"):
            self._deliver(message)
        else:
            raise ProtocolError(f"unexpected message {message.kind}")

    def _start_request(self, id_: int) -> None:
        pending = self._pending.get(id_)
        self._current = _CurrentRequest(id_, pending.job if pending else "")

    def _note_progress(self, message: Message) -> None:
        current = self._current
        if current is None or current.id != message.id:  # a thread of a download has a last word
            return
        current.silent = 0.0
        if message.kind == "stage":
            current.loading = bool(message.body["text"])
            self._report_stage(message)
            return
        current.loading = False
        if message.kind == "batch":
            current.suspects = tuple(integers(message.body["positions"]))

    def _report_stage(self, message: Message) -> None:
        pending = self._pending.get(message.id)
        if pending is not None:
            pending.events.put(message)
        elif message.id == 0 and message.body["text"]:
            logger.info("%s", message.body["text"])

    def _deliver(self, message: Message) -> None:
        """Pass an answer on. The process may still be at it: one that was given up while it loads is answered first."""
        self.served = True
        with self._lock:
            pending = self._pending.pop(message.id, None)
            self._cancelled.discard(message.id)
        self._computed.discard(message.id)
        if pending is not None:
            pending.events.put(message)

    def _close(self, status: int) -> None:
        self.process_exit = process_exit = self._make_exit(status)
        with self._lock:
            self._ended = True
            left, self._pending = self._pending, {}
        self._channel.close()
        for pending in left.values():
            pending.events.put(self._exit_for(pending, process_exit))

    def _exit_for(self, pending: PendingRequest, process_exit: ProcessExit) -> ProcessExit:
        """Return the death as it is for one request: to load a job's model is the doing of all its requests."""
        current = self._current
        if current is None or current.id == pending.id:
            return dataclasses.replace(process_exit, blamed=current is not None)
        shared = current.loading and current.job == pending.job
        return ProcessExit(
            process_exit.failure, loading=shared, blamed=shared, killed=process_exit.killed, stuck=process_exit.stuck
        )

    def _make_exit(self, status: int) -> ProcessExit:
        current = self._current
        failure = self._kill_reason or Failure("worker_died", f"The device process died: {describe_exit(status)}.")
        killed = status == -signal.SIGKILL and self._kill_reason is None
        if current is None:
            return ProcessExit(failure, idle=True, killed=killed)
        return ProcessExit(
            failure, current.suspects, current.loading, killed=killed, stuck=self._kill_reason is not None
        )


def describe_exit(status: int) -> str:
    """Return how a process ended, in words; `status` is as `subprocess` gives it."""
    if status == DEVICE_LOST:
        return "the GPU reported an error that ruined its context (see the worker's log)"
    if status >= 0:
        return f"it exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
    more = {"SIGKILL": ", as the kernel sends when memory runs out", "SIGSEGV": ", a segmentation fault"}
    return f"{name}{more.get(name, '')}"


def error_of(message: Message) -> CodedError:
    """Return the error that a `failed` or `refused` message stands for."""
    kind = ModelError if message.body["error"] == "model" else WorkerError
    return kind(message.body["code"], message.body["message"])


def _spawn(device: str) -> tuple[Channel, "subprocess.Popen[bytes]"]:
    """Start the process: fresh, never forked, in a session of its own, with one end of a socket pair."""
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
            return Channel(ours.detach()), process
    except OSError as error:  # too many open files or processes, no memory to fork
        raise WorkerError("device_process_dies", f"The device process cannot be started: {error}") from error
