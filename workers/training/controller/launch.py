"""Launch of the training processes: starts them (several by `accelerate launch`), reads their messages, ends them.

The processes connect to a Unix socket of this process and exit when it closes, so that no training outlives its
worker; those that do not exit are killed.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from common.records import Json
from common.sockets import fits_socket_path
from workers.child_env import available_cpus, child_env
from workers.training.controller.reporting import reporting_env

#: Seconds for processes to exit after the socket closed.
_EXIT_SECONDS = 5.0
#: Bytes at the end of the log in which the cause of a crash is looked for.
_TAIL = 8192
#: The sockets that `multiprocessing` creates in the temporary directory, for processes that load examples.
_LOADER_SOCKET = "pymp-12345678/listener-12345678"


class Launch:
    """One run of the training processes; a context manager that ends them.

    Args:
        config_path: file with the run configuration.
        socket_path: where to listen.
        log: file for the output of the processes.
        cuda: whether they run on GPUs.
        processes: how many there are.
        env: their environment, by `training_env`.
    """

    def __init__(
        self, config_path: Path, socket_path: Path, log: Path, *, cuda: bool, processes: int, env: Mapping[str, str]
    ) -> None:
        self._log = log
        self._messages: queue.SimpleQueue[Mapping[str, Json]] = queue.SimpleQueue()
        self._pids: set[int] = set()
        self._connections: list[socket.socket] = []
        self._readers: list[threading.Thread] = []
        self._stop_requested = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(socket_path))
        self._listener.listen(processes)
        env = dict(env)
        if not fits_socket_path(Path(tempfile.gettempdir(), _LOADER_SOCKET)):
            env["TMPDIR"] = str(socket_path.parent)  # a short path
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                _command(config_path, env, cuda=cuda, processes=processes),
                env=env,
                cwd=config_path.parent,  # holds only the run's files: no dataset's name is a directory here
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def next_message(self, seconds: float) -> Mapping[str, Json] | None:
        """Return the next message of the processes, None where there is none in time."""
        with suppress(queue.Empty):
            return self._messages.get(timeout=seconds)
        return None

    def has_ended(self) -> bool:
        """Whether the processes have exited and all of their messages are read."""
        if self._process.poll() is None:
            return False
        for reader in self._readers:
            reader.join(_EXIT_SECONDS)
        return self._messages.empty()

    def stop(self) -> None:
        """Ask the processes to write a checkpoint and exit."""
        self._stop_requested = True
        for connection in self._connections:
            with suppress(OSError):
                connection.sendall(b"stop\n")

    def kill(self) -> None:
        """Kill the processes."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in self._pids:  # several processes have a session each
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """Return the end of the processes' output."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL))
            return log.read().decode(errors="replace")

    def last_log_line(self) -> str:
        """Return the line of the log that best explains a crash."""
        lines = [line.strip() for line in self.log_tail().splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line and "CalledProcessError" not in line]
        return (errors or lines or ["no output"])[-1][:500]

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake the thread in `accept`
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                if self._stop_requested:
                    self.stop()
                reader = threading.Thread(target=self._read, args=(connection,), name="training", daemon=True)
                self._readers.append(reader)
                reader.start()

    def _read(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message["kind"] == "hello":
                    self._pids.add(message["pid"])
                else:
                    self._messages.put(message)


def _command(config_path: Path, env: Mapping[str, str], *, cuda: bool, processes: int) -> list[str]:
    trainer = ["-m", "workers.training.trainer", str(config_path)]
    if processes == 1:
        return [sys.executable, "-P", *trainer]
    accelerate_config = _write_config(config_path.with_name("accelerate.json"), cuda, processes)
    threads = env["OMP_NUM_THREADS"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", accelerate_config, "--main_process_port", "0"]
    return [sys.executable, "-P", *launch, "--num_cpu_threads_per_process", threads, *trainer]


def _write_config(path: Path, cuda: bool, processes: int) -> str:
    """Write a configuration for accelerate, instead of one in the user's home; it has all that would be asked for.

    Several processes on the CPU are started like several GPUs (with gloo, see `ACCELERATE_USE_CPU`): for more than
    one process on the CPU, accelerate itself only supports MPI.
    """
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_processes": processes,
        "num_machines": 1,
        "machine_rank": 0,
        "gpu_ids": "all",
        "use_cpu": not cuda,
        "mixed_precision": "no",
        "main_training_function": "main",
        "debug": False,
    }
    path.write_text(json.dumps(config))
    return str(path)


def training_env(*, cuda: bool, processes: int, reporters: Sequence[str] = (), job_id: str = "") -> dict[str, str]:
    """Return the environment of training processes.

    Args:
        cuda: whether they run on GPUs.
        processes: how many there are.
        reporters: what the job reports to.
        job_id: the job's.
    """
    env = child_env("cuda" if cuda else "cpu", processes, reporters)
    env |= reporting_env(env, reporters, job_id)
    env["TOKENIZERS_PARALLELISM"] = "false"  # data loaders may fork
    env.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report every run to the Hub
    env.setdefault("OMP_NUM_THREADS", str(available_cpus()))
    if not cuda:
        env["ACCELERATE_USE_CPU"] = "true"
    return env
