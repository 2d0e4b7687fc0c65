"""A TCP proxy on loopback that can stop to forward without closing anything: a network that is cut, and mended."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Forwards connections to a local port; what comes in while it is frozen arrives when it is thawed, if ever."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._requests, self._answers = threading.Event(), threading.Event()
        self._trigger: bytes | None = None
        self._sockets: list[socket.socket] = []
        self._address = ("127.0.0.1", 0)
        self.serve()
        self._address = self._listener.getsockname()
        self.thaw()

    @property
    def url(self) -> str:
        """The address of a Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def port(self) -> int:
        return self._address[1]

    def freeze(self) -> None:
        """Forward nothing any more, and close nothing."""
        self._requests.clear()
        self._answers.clear()

    def hold_answers_after(self, request: bytes) -> None:
        """Forward no answer any more once a request that holds these bytes comes by; it is the last to pass."""
        self._trigger = request

    @property
    def holds_answers(self) -> bool:
        return not self._answers.is_set()

    def thaw(self) -> None:
        """Forward everything again, what was held back first."""
        self._trigger = None
        self._requests.set()
        self._answers.set()

    def refuse(self) -> None:
        """Hang up on everybody, and refuse who comes: a server that is gone."""
        for sock in [self._listener, *self._sockets]:
            _hang_up(sock)
        self._sockets.clear()

    def serve(self) -> None:
        """Take connections again, at the address as before."""
        self._listener = socket.create_server(self._address)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        self.thaw()
        for sock in [self._listener, *self._sockets]:
            _hang_up(sock)

    def _accept(self, listener: socket.socket) -> None:
        while listener.fileno() >= 0:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # closed; or there is nobody to connect to, and `near` is closed with its last reference
                continue
            self._sockets += [near, far]
            for pump in (self._pump_requests, self._pump_answers):
                threading.Thread(target=pump, args=(near, far), daemon=True).start()

    def _pump_requests(self, near: socket.socket, far: socket.socket) -> None:
        for data in _received(near):
            self._requests.wait()
            last = self._trigger is not None and self._trigger in data
            if last:
                self._answers.clear()
            _send(far, data)
            if last:
                self._requests.clear()
        self._requests.wait()
        _hang_up(far)

    def _pump_answers(self, near: socket.socket, far: socket.socket) -> None:
        for data in _received(far):
            self._answers.wait()
            _send(near, data)
        self._answers.wait()
        _hang_up(near)


def _received(sock: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data = sock.recv(1 << 16)
        except OSError:
            return
        if not data:
            return
        yield data


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        _hang_up(sock)


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was quicker
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
