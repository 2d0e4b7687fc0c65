"""A stand-in for the datasets of the Hugging Face Hub: what `datasets.load_dataset` asks for. For `HF_ENDPOINT`."""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "a" * 40
_INFO = re.compile(r"^/api/datasets/(?P<name>[^/]+/[^/]+)(/revision/[^/]+)?$")
_TREE = re.compile(r"^/api/datasets/(?P<name>[^/]+/[^/]+)/tree/[^/]+(?P<folder>/.+)?$")
_PATHS = re.compile(r"^/api/datasets/(?P<name>[^/]+/[^/]+)/paths-info/[^/]+$")
_FILE = re.compile(r"^/datasets/(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)$")


class DatasetServer:
    """Serves datasets made of bytes: name to files; a context manager."""

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

    def answer(self, path: str, *, recursive: bool = False) -> Any:
        """What lies at a path: an object for JSON, bytes for a file, None for nothing."""
        if (match := _INFO.match(path)) and match["name"] in self.datasets:
            names = [{"rfilename": name} for name in self.datasets[match["name"]]]
            return {"id": match["name"], "sha": COMMIT, "private": False, "gated": False, "siblings": names}
        if (match := _TREE.match(path)) and match["name"] in self.datasets:
            folder = (match["folder"] or "")[1:]
            files = self.datasets[match["name"]]
            inside = [name for name in files if not folder or name.startswith(f"{folder}/")]
            if recursive:
                return [_entry(name, files[name]) for name in inside]
            depth = len(folder.split("/")) if folder else 0
            heads = dict.fromkeys("/".join(name.split("/")[: depth + 1]) for name in inside)
            return [_entry(name, files.get(name)) for name in heads]
        if match := _FILE.match(path):
            return self.datasets.get(match["name"], {}).get(match["file"])
        return None

    def entries(self, path: str, names: list[str]) -> Any:
        """What the Hub says of some paths of a dataset; None where there is no such dataset."""
        match = _PATHS.match(path)
        if match is None or match["name"] not in self.datasets:
            return None
        files = self.datasets[match["name"]]
        folders = [name for name in names if any(file.startswith(f"{name}/") for file in files)]
        return [_entry(name, files.get(name)) for name in names if name in files or name in folders]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                self._answer(server.answer(url.path, recursive="recursive=true" in url.query.lower()))

            def do_POST(self) -> None:
                body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self._answer(server.entries(urlsplit(self.path).path, body.get("paths", [])))

            def _answer(self, found: Any) -> None:
                body = {"error": "not found"} if found is None else found
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{_digest(data)}"')
                self.send_header("X-Repo-Commit", COMMIT)
                if found is None:
                    self.send_header(
                        "X-Error-Code", "RepoNotFound" if self.path.startswith("/api/") else "EntryNotFound"
                    )
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_HEAD = do_GET  # noqa: N815 - a name of the library

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _entry(name: str, data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {"type": "directory", "path": name, "oid": _digest(name.encode())}
    return {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
