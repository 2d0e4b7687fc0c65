"""`producer up`: Redis, workers and Flower in the foreground, until Ctrl-C.

Without a configured Redis the keeper of the embedded one runs Redis and the worker; this adds Flower and waits.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

from common.distribution import install, worker_needs
from common.errors import HugqueueError, UsageError
from common.models.references import resolve_preload
from common.processes import die_with_parent
from common.settings import Settings, load_settings, to_environ
from producer.cli.terminal import Say
from producer.embedded.attach import attach, end_outdated_worker, revive
from producer.embedded.state_dir import Place
from producer.queue_connection import Connection

HOST = "127.0.0.1"
#: What Flower shows of each turn: which job, and what came of it.
COLUMNS = "name,args,result,state,runtime,worker,received"
#: Seconds between two looks at the children.
TICK = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A running part, and what people call it."""

    name: str
    process: "subprocess.Popen[bytes]"


def run_all(*, device: str | None, preload: Sequence[str], port: int | None, say: Say) -> int:
    """Run everything until Ctrl-C, SIGTERM, or the end of a part; return the exit status.

    Args:
        device: what the workers run on; None for what the environment says.
        preload: models to load at once, as `TASK[=MODEL]`.
        port: Flower's; None for no Flower.
        say: told what runs where.

    Raises:
        UsageError: Flower is wanted and not installed, its port is taken, or the worker's libraries are not there.
        StoreUnavailable: Redis is away.
    """
    if port is not None:
        _check_flower(port)
    settings = load_settings()
    settings = dataclasses.replace(
        settings,
        device=device or settings.device,
        preload=tuple(map(resolve_preload, preload)) or settings.preload,
    )
    if not settings.embedded and (needs := worker_needs()):
        raise UsageError(f"The workers need {needs}. Elsewhere, `workers start` serves this queue.")
    stopped = _stop_on_signals()
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(_queue(settings, say))
        say(f"Redis    {shared.broker}")
        parts = []
        if not settings.embedded:
            parts.append(stack.enter_context(_running("The workers", _workers_command(shared), shared)))
        if port is not None:
            parts.append(stack.enter_context(_running("Flower", _flower_command(port), shared)))
        return _Watch(settings, Connection(shared), parts, port, stopped, say).run()


def _check_flower(port: int) -> None:
    if importlib.util.find_spec("flower") is None:
        raise UsageError(f"Flower is not installed: {install('monitor')}, or say --no-flower.")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"Flower cannot listen on {HOST}:{port}: {error.strerror}. Name another port with --port."
            ) from error


def _stop_on_signals() -> threading.Event:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


@contextlib.contextmanager
def _queue(settings: Settings, say: Say) -> Iterator[Settings]:
    if settings.embedded:
        told: list[str] = []
        end_outdated_worker(settings)
        with attach(settings, working=True, say=told.append) as shared:
            say("\n".join(told) or "An embedded Redis runs already; its worker keeps the device and the models it has.")
            yield shared
        return
    Connection(settings).check()
    yield settings


def _workers_command(settings: Settings) -> list[str]:
    return [sys.executable, "-P", "-m", "workers.cli", "start", "--device", settings.device, "--log-level", "warning"]


def _flower_command(port: int) -> list[str]:
    command = [sys.executable, "-P", "-m", "hugqueue.celery", "flower"]
    command += [f"--address={HOST}", f"--port={port}", "--read-only", "--logging=error"]
    return [*command, f"--tasks_columns={COLUMNS}"]


def _environ(settings: Settings) -> Mapping[str, str]:
    environ = {**os.environ, **to_environ(dataclasses.replace(settings, supervised=os.getpid()))}
    # It opens what --read-only leaves open: /api/task/send-task and the like.
    environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    return environ


@contextlib.contextmanager
def _running(name: str, command: list[str], settings: Settings) -> Iterator[Part]:
    """Run a command as long as the block lasts, in a session of its own: Ctrl-C is for us to pass on."""
    process = subprocess.Popen(
        command,
        env=_environ(settings),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        # Safe: there is one thread here. Flower itself would outlive a `producer up` that is killed.
        preexec_fn=die_with_parent(),  # noqa: PLW1509
    )
    try:
        yield Part(name, process)
    finally:
        process.terminate()
        try:
            process.wait(settings.workers_stop)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Watch:
    """Waits for the end, and says once when the workers and Flower are there."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        parts: Sequence[Part],
        port: int | None,
        stopped: threading.Event,
        say: Say,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._parts = parts
        self._port = port
        self._stopped = stopped
        self._say = say
        self._known: set[str] = set()

    def run(self) -> int:
        """Return the exit status: 0 when it was asked to stop, 1 when a part ended by itself."""
        self._say("Ctrl-C stops everything.")
        while not self._stopped.wait(TICK):
            ended = [part for part in self._parts if part.process.poll() is not None]
            if ended:
                self._say(f"{ended[0].name} ended with status {ended[0].process.returncode}; stopping everything.")
                return 1
            if fault := self._tend_embedded():
                self._say(f"{fault} Stopping everything.")
                return 1
            self._say_workers()
            self._say_flower()
        self._say("stopping ...")
        return 0

    def _tend_embedded(self) -> str:
        """Have Redis and its worker started again where they were killed; return why they do not run, if so."""
        if not self._settings.embedded:
            return ""
        try:
            revive(self._settings, working=True, say=self._say)
            return Place.of(self._settings).worker_failure.read_text()
        except FileNotFoundError:
            return ""
        except HugqueueError as error:
            return str(error)

    def _say_workers(self) -> None:
        with contextlib.suppress(HugqueueError):  # the workers themselves tell that Redis is away
            for worker in self._connection.workers():
                if worker.state == "ready" and worker.name not in self._known:
                    self._known.add(worker.name)
                    self._say(f"worker   {worker.name} on {worker.device} ({worker.device_name})")

    def _say_flower(self) -> None:
        if self._port is None:
            return
        with socket.socket() as sock:
            if sock.connect_ex((HOST, self._port)) == 0:
                self._say(f"Flower   http://{HOST}:{self._port}")
                self._port = None
