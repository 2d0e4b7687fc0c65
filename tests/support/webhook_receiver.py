"""A receiver of notifications: an HTTP server that answers as it is told, and notes what it was sent."""

import json
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        return json.loads(self.body)


class Receiver:
    """The server, in a thread of its own; a context manager.

    Args:
        *answers: The statuses of the first answers; all others are 204.
        port: Where it listens; 0: anywhere.
        certificate: With it, it speaks TLS: the files of a certificate and its key.
    """

    def __init__(self, *answers: int, port: int = 0, certificate: tuple[str, str] | None = None) -> None:
        self.answers = list(answers)
        self.received: list[Received] = []
        self.go = threading.Event()  #: until it is set, there is no answer
        self.go.set()
        self.trickle = False  #: whether it answers a byte at a time, without end
        self.retry_after: str | None = None  #: a header of every answer
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def origin(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/jobs?token=swordfish"

    def messages(self, job_id: str) -> list[dict[str, Any]]:
        """Return what it was sent of a job."""
        return [found.message for found in self.received if found.message["data"]["job"]["id"] == job_id]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append(Received(self.path, dict(self.headers), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                receiver.go.wait(60)
                with suppress(OSError):
                    if receiver.trickle:
                        self._trickle()
                    self.send_response(status)
                    self.send_header("Location", receiver.origin + "/elsewhere")
                    if receiver.retry_after is not None:
                        self.send_header("Retry-After", receiver.retry_after)
                    self.end_headers()

            def _trickle(self) -> None:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
                while receiver.trickle:
                    self.wfile.write(b"x")
                    threading.Event().wait(0.05)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
