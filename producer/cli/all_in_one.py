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

from common.distribution import install_command, missing_worker_libraries
from common.errors import HugqueueError, UsageError
from common.models.references import parse_preload
from common.processes import die_with_parent
from common.settings import Settings, load_settings, to_environ
from producer.cli.terminal import Notify
from producer.embedded.attach import attach, ensure_running, stop_outdated_worker
from producer.embedded.state_dir import StateDir
from producer.queue_connection import QueueConnection

HOST = "127.0.0.1"
#: What Flower shows of each turn: which job, and what came of it.
COLUMNS = "name,args,result,state,runtime,worker,received"
#: Seconds between two looks at the children.
TICK = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """A running part, and what people call it."""

    name: str
    process: "subprocess.Popen[bytes]"


def run_services(*, device: str | None, preload: Sequence[str], port: int | None, notify: Notify) -> int:
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
        preload=tuple(map(parse_preload, preload)) or settings.preload,
    )
    if not settings.embedded and (needs := missing_worker_libraries()):
        raise UsageError(f"The workers need {needs}. Elsewhere, `workers start` serves this queue.")
    stopped = _stop_on_signals()
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(_queue(settings, notify))
        notify(f"Redis    {shared.broker}")
        services = []
        if not settings.embedded:
            services.append(stack.enter_context(_running("The workers", _workers_command(shared), shared)))
        if port is not None:
            services.append(stack.enter_context(_running("Flower", _flower_command(port), shared)))
        return _Monitor(settings, QueueConnection(shared), services, port, stopped, notify).run()


def _check_flower(port: int) -> None:
    if importlib.util.find_spec("flower") is None:
        raise UsageError(f"Flower is not installed: {install_command('monitor')}, or say --no-flower.")
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
def _queue(settings: Settings, notify: Notify) -> Iterator[Settings]:
    if settings.embedded:
        told: list[str] = []
        stop_outdated_worker(settings)
        with attach(settings, working=True, notify=told.append) as shared:
            notify(
                "\n".join(told) or "An embedded Redis runs already; its worker keeps the device and the models it has."
            )
            yield shared
        return
    QueueConnection(settings).check()
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
def _running(name: str, command: list[str], settings: Settings) -> Iterator[Service]:
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
        yield Service(name, process)
    finally:
        process.terminate()
        try:
            process.wait(settings.workers_stop)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Monitor:
    """Waits for the end, and says once when the workers and Flower are there."""

    def __init__(
        self,
        settings: Settings,
        connection: QueueConnection,
        services: Sequence[Service],
        port: int | None,
        stopped: threading.Event,
        notify: Notify,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._services = services
        self._port = port
        self._stopped = stopped
        self._notify = notify
        self._known: set[str] = set()

    def run(self) -> int:
        """Return the exit status: 0 when it was asked to stop, 1 when a part ended by itself."""
        self._notify("Ctrl-C stops everything.")
        while not self._stopped.wait(TICK):
            ended = [part for part in self._services if part.process.poll() is not None]
            if ended:
                self._notify(f"{ended[0].name} ended with status {ended[0].process.returncode}; stopping everything.")
                return 1
            if fault := self._restart_embedded():
                self._notify(f"{fault} Stopping everything.")
                return 1
            self._say_workers()
            self._say_flower()
        self._notify("stopping ...")
        return 0

    def _restart_embedded(self) -> str:
        """Have Redis and its worker started again where they were killed; return why they do not run, if so."""
        if not self._settings.embedded:
            return ""
        try:
            ensure_running(self._settings, working=True, notify=self._notify)
            return StateDir.of(self._settings).worker_failure.read_text()
        except FileNotFoundError:
            return ""
        except HugqueueError as error:
            return str(error)

    def _say_workers(self) -> None:
        with contextlib.suppress(HugqueueError):  # the workers themselves tell that Redis is away
            for worker in self._connection.workers():
                if worker.state == "ready" and worker.name not in self._known:
                    self._known.add(worker.name)
                    self._notify(f"worker   {worker.name} on {worker.device} ({worker.device_name})")

    def _say_flower(self) -> None:
        if self._port is None:
            return
        with socket.socket() as sock:
            if sock.connect_ex((HOST, self._port)) == 0:
                self._notify(f"Flower   http://{HOST}:{self._port}")
                self._port = None
