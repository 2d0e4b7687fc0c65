"""A stand-in for the data sets of the Hugging Face hub: what `datasets.load_dataset` asks for. For `HF_ENDPOINT`."""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "a" * 40
_INFO = re.compile(r"^/api/datasets/(?P<name>[^/]+/[^/]+)(/revision/[^/]+)?$")
_TREE = re.compile(r"^/api/datasets/(?P<name>[^/]+/[^/]+)/tree/[^/]+(?P<folder>/.+)?$")
_FILE = re.compile(r"^/datasets/(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)$")


class DatasetServer:
    """Serves data sets made of bytes: name to files; a context manager."""

    def __init__(self, datasets: Mapping[str, Mapping[str, bytes]]) -> None:
        self.datasets = datasets
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "DatasetServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> Any:
        """What lies at a path: an object for JSON, bytes for a file, None for nothing."""
        if (match := _INFO.match(path)) and match["name"] in self.datasets:
            names = [{"rfilename": name} for name in self.datasets[match["name"]]]
            return {"id": match["name"], "sha": COMMIT, "private": False, "gated": False, "siblings": names}
        if (match := _TREE.match(path)) and match["name"] in self.datasets:
            files = {} if match["folder"] else self.datasets[match["name"]]
            return [{"type": "file", "path": n, "size": len(b), "oid": _digest(b)} for n, b in files.items()]
        if match := _FILE.match(path):
            return self.datasets.get(match["name"], {}).get(match["file"])
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = server.answer(urlsplit(self.path).path)
                data = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{_digest(data)}"')
                self.send_header("X-Repo-Commit", COMMIT)
                if found is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_HEAD = do_GET  # noqa: N815 - a name of the library

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
