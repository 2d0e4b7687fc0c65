"""`producer up`: runs Redis, workers, tasks for Celery apps and Flower in the foreground until Ctrl-C.

If no Redis is configured, the daemon of the embedded one runs Redis and the worker; this module adds the rest.
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
#: Columns of Flower's table of jobs and tickets.
FLOWER_COLUMNS = "name,args,result,state,runtime,worker,received"
#: The page with the rows of jobs, and of nothing else (`workers.celery_worker.job_rows.ROW_NAME`).
JOBS_PAGE = "/tasks?name=hugqueue.job"
#: Serves the tasks of Celery apps.
_CONTROL_COMMAND = [sys.executable, "-P", "-m", "producer.cli", "control", "--quiet", "--log-level", "warning"]
_POLL_SECONDS = 0.2


def run_services(*, device: str | None, preload: Sequence[str], port: int | None, notify: Notify) -> int:
    """Run everything until Ctrl-C, SIGTERM, or the exit of a service; return the exit status.

    Args:
        device: device of the workers; None for the setting.
        preload: models to load at start, as `TASK[=MODEL]`.
        port: Flower's port; None to run without Flower.
        notify: called with messages about what runs where.

    Raises:
        UsageError: Flower is not installed, its port is in use, or the worker's libraries are missing.
        StoreUnavailable: Redis is unavailable.
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
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with contextlib.ExitStack() as stack:
        connected = stack.enter_context(_connect(settings, notify))
        notify(f"Redis    {connected.broker}")
        notify("control  tasks of Celery apps on the queue hugqueue.control")
        services = {}
        if not settings.embedded:
            services["The workers"] = stack.enter_context(_running(_workers_command(connected), connected))
        services["producer control"] = stack.enter_context(_running(_CONTROL_COMMAND, connected))
        if port is not None:
            services["Flower"] = stack.enter_context(_running(_flower_command(port), connected))
        return _ServiceMonitor(settings, QueueConnection(connected), services, port, notify).run(stopped)


def _check_flower(port: int) -> None:
    if importlib.util.find_spec("flower") is None:
        raise UsageError(f"Flower is not installed: {install_command('monitor')}, or use --no-flower.")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"Flower cannot listen on {HOST}:{port}: {error.strerror}. Choose another port with --port."
            ) from error


@contextlib.contextmanager
def _connect(settings: Settings, notify: Notify) -> Iterator[Settings]:
    if not settings.embedded:
        QueueConnection(settings).check()
        yield settings
        return
    messages: list[str] = []
    stop_outdated_worker(settings)
    with attach(settings, with_worker=True, notify=messages.append) as connected:
        notify(
            "\n".join(messages)
            or "An embedded Redis is already running; its worker keeps its device and its loaded models."
        )
        yield connected


def _workers_command(settings: Settings) -> list[str]:
    return [sys.executable, "-P", "-m", "workers.cli", "start", "--device", settings.device, "--log-level", "warning"]


def _flower_command(port: int) -> list[str]:
    command = [sys.executable, "-P", "-m", "hugqueue.celery", "flower"]
    command += [f"--address={HOST}", f"--port={port}", "--read-only", "--logging=error"]
    return [*command, f"--tasks_columns={FLOWER_COLUMNS}"]


def _environ(settings: Settings) -> Mapping[str, str]:
    environ = {**os.environ, **to_environ(dataclasses.replace(settings, supervised=os.getpid()))}
    # It would open what --read-only leaves open, such as /api/task/send-task.
    environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    return environ


@contextlib.contextmanager
def _running(command: list[str], settings: Settings) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command for the duration of the block, in its own session: Ctrl-C reaches only this process."""
    process = subprocess.Popen(
        command,
        env=_environ(settings),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        # Safe, as there is one thread here. Otherwise Flower would outlive a killed `producer up`.
        preexec_fn=die_with_parent(),  # noqa: PLW1509
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(settings.supervisor_stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _ServiceMonitor:
    """Waits for the end, restarts an embedded Redis, and announces workers and Flower once they are ready."""

    def __init__(
        self,
        settings: Settings,
        connection: QueueConnection,
        services: "Mapping[str, subprocess.Popen[bytes]]",
        port: int | None,
        notify: Notify,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._services = services
        self._unannounced_port = port
        self._notify = notify
        self._announced: set[str] = set()

    def run(self, stopped: threading.Event) -> int:
        """Return the exit status: 0 when `stopped` is set, 1 when a service ends by itself."""
        self._notify("Ctrl-C stops everything.")
        while not stopped.wait(_POLL_SECONDS):
            if fault := self._fault():
                self._notify(f"{fault} Stopping everything.")
                return 1
            self._announce_workers()
            self._announce_flower()
        self._notify("stopping ...")
        return 0

    def _fault(self) -> str:
        """Return why a service no longer runs, or an empty string; restart an embedded Redis that was killed."""
        for name, process in self._services.items():
            if process.poll() is not None:
                return f"{name} exited with status {process.returncode}."
        if not self._settings.embedded:
            return ""
        try:
            ensure_running(self._settings, with_worker=True, notify=self._notify)
            return StateDir.of(self._settings).worker_failure.read_text()
        except FileNotFoundError:
            return ""
        except HugqueueError as error:
            return str(error)

    def _announce_workers(self) -> None:
        with contextlib.suppress(HugqueueError):  # the workers themselves report that Redis is unavailable
            for worker in self._connection.workers():
                if worker.state == "ready" and worker.name not in self._announced:
                    self._announced.add(worker.name)
                    self._notify(f"worker   {worker.name} on {worker.device} ({worker.device_name})")

    def _announce_flower(self) -> None:
        if self._unannounced_port is None:
            return
        with socket.socket() as sock:
            if sock.connect_ex((HOST, self._unannounced_port)) == 0:
                self._notify(f"Flower   http://{HOST}:{self._unannounced_port}{JOBS_PAGE}")
                self._unannounced_port = None
