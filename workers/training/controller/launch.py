"""Starting `accelerate launch`, hearing its processes out, and ending them. Never imports torch.

The processes connect to a socket of ours and end when it closes, so that nothing trains on behind a dead worker;
those that do not are killed by their ids.
"""

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from common.records import Json
from common.sockets import fits_socket_path
from workers.child_env import available_cpus, child_env

logger = logging.getLogger(__name__)

#: Seconds for processes to end by themselves after the socket closed.
_EXIT_SECONDS = 5.0
#: Bytes at the end of the log in which the reason of a death is looked for.
_TAIL = 8192
#: Sockets that `multiprocessing` makes in the temporary directory, for processes that load examples.
_LOADERS = "pymp-12345678/listener-12345678"


class Launch:
    """One run of the training processes; a context manager, which ends them.

    Args:
        order: the file with the order.
        address: path of the socket to listen at.
        log: file for what the processes say.
        cuda: whether they run on GPUs.
        processes: how many there are.
    """

    def __init__(self, config_path: Path, address: Path, log: Path, *, cuda: bool, processes: int) -> None:
        self.messages: queue.SimpleQueue[Mapping[str, Json]] = queue.SimpleQueue()
        self._log = log
        self._pids: set[int] = set()
        self._connections: list[socket.socket] = []
        self._readers: list[threading.Thread] = []
        self._stop_requested = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen(processes)
        environ = _environ(cuda=cuda, processes=processes)
        if not fits_socket_path(Path(tempfile.gettempdir(), _LOADERS)):
            environ["TMPDIR"] = str(address.parent)  # which is short
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                _command(config_path, environ, cuda=cuda, processes=processes),
                env=environ,
                cwd=config_path.parent,  # empty but for our own files: no name of a data set is a directory here
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        for target in (self._accept, self._await_end):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        """Ask the processes to write a checkpoint and end."""
        self._stop_requested = True
        for connection in self._connections:
            with suppress(OSError):
                connection.sendall(b"stop\n")

    def kill(self) -> None:
        """End the processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in self._pids:  # of several processes, each has a session of its own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def tail(self) -> str:
        """Return the end of what the processes said."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL))
            return log.read().decode(errors="replace")

    def last_log_line(self) -> str:
        """Return the last line of the log that says something, for the message of a death."""
        lines = [line.strip() for line in self.tail().splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line and "CalledProcessError" not in line]
        return (telling or lines or ["it said nothing"])[-1][:500]

    def __enter__(self) -> "Launch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake the thread that accepts
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
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            if self._stop_requested:
                self.stop()
            hearing = threading.Thread(target=self._hear, args=(connection,), name="training", daemon=True)
            self._readers.append(hearing)
            hearing.start()

    def _hear(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message["kind"] == "hello":
                    self._pids.add(message["pid"])
                else:
                    self.messages.put(message)

    def _await_end(self) -> None:
        self._process.wait()
        for hearing in self._readers:  # their last words come first
            hearing.join(_EXIT_SECONDS)
        self.messages.put({"kind": "ended"})


def _command(config_path: Path, environ: Mapping[str, str], *, cuda: bool, processes: int) -> list[str]:
    """Return the command line; of `accelerate`, everything it would ask for or warn about is named."""
    command = [sys.executable, "-P", "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(_write_config(config_path.with_name("accelerate.json"), cuda, processes))]
    command += ["--num_cpu_threads_per_process", environ["OMP_NUM_THREADS"]]
    if processes > 1:
        command += ["--main_process_port", "0"]
    return [*command, "-m", "workers.training.trainer", str(config_path)]


def _write_config(path: Path, cuda: bool, processes: int) -> Path:
    """Write a configuration for accelerate: one that lies in the user's home would decide otherwise.

    Several processes on the CPU are started as several GPUs are (with gloo, see `ACCELERATE_USE_CPU`): for more than
    one process on the CPU, accelerate itself knows MPI alone.
    """
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if processes > 1 else "NO",
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
    return path


def _environ(*, cuda: bool, processes: int) -> dict[str, str]:
    environ = child_env("cuda" if cuda else "cpu", processes)
    environ["TOKENIZERS_PARALLELISM"] = "false"  # loaders may fork
    environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))
    if not cuda:
        environ["ACCELERATE_USE_CPU"] = "true"
    return environ
