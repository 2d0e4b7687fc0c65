"""The training process's end of the socket to the Celery process: it tells, is told to stop, and ends with it."""

import os
import socket
import threading
from typing import Any

from common.json_codec import to_json

#: Exit status of a process whose Celery process is gone.
ORPHANED = 70


class ControlSocket:
    """A connection on which messages go out and one word, `stop`, may come in.

    The process ends at once when the other side closes: nobody is left who could renew the lease, and another worker
    may already be at the same job.
    """

    def __init__(self, path: str, rank: int) -> None:
        self.rank = rank
        self.stop_requested = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lock = threading.Lock()
        self.send("hello", rank=rank, pid=os.getpid())
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    def send(self, kind: str, **body: Any) -> None:
        """Send a message; what is not a finite number goes as null."""
        line = to_json({"kind": kind, **body}).encode() + b"\n"
        with self._lock:
            try:
                self._socket.sendall(line)
            except OSError:  # not to be taken for an error of the training, which has some of the same kind
                os._exit(ORPHANED)

    def send_from_main_process(self, kind: str, **body: Any) -> None:
        """Send a message from the first process alone: the others would say the same."""
        if self.rank == 0:
            self.send(kind, **body)

    def _listen(self) -> None:
        try:
            while self._socket.recv(64):
                self.stop_requested.set()
        except OSError:
            pass
        os._exit(ORPHANED)
