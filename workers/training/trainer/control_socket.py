"""Control socket: the training process's connection to the Celery process, for progress out and a stop request in."""

import os
import socket
import threading
from typing import Any

from common.json_codec import to_json

#: Exit status of a process whose Celery process is gone.
ORPHANED = 70


class ControlSocket:
    """A connection that sends messages as JSON lines; any bytes received are a request to stop.

    The process exits at once when the other side closes: nobody is left to renew the lease, and another worker may
    already run the same job.

    Args:
        path: of the Unix socket.
        rank: number of this process; progress is sent from process 0 only.
    """

    def __init__(self, path: str, rank: int) -> None:
        self.rank = rank
        self.stop_requested = threading.Event()
        self.notes: list[str] = []  #: what `note` sent
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lock = threading.Lock()
        self.send("hello", rank=rank, pid=os.getpid())
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def send(self, kind: str, **body: Any) -> None:
        """Send a message; numbers that are not finite are sent as null."""
        line = to_json({"kind": kind, **body}).encode() + b"\n"
        with self._lock:
            try:
                self._socket.sendall(line)
            except OSError:  # must not look like an error of the training, which raises OSError too
                os._exit(ORPHANED)

    def send_from_main_process(self, kind: str, **body: Any) -> None:
        """Send a message from process 0 only: the others would repeat it."""
        if self.rank == 0:
            self.send(kind, **body)

    def stage(self, text: str) -> None:
        """Report what the run is doing."""
        self.send_from_main_process("stage", text=text)

    def note(self, text: str) -> None:
        """Report a remark that stays with the job."""
        self.notes.append(text)
        self.send_from_main_process("note", text=text)

    def _listen(self) -> None:
        try:
            while self._socket.recv(64):
                self.stop_requested.set()
        except OSError:
            pass
        os._exit(ORPHANED)
