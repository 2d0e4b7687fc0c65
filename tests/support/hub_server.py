"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that downloading a snapshot asks for.

Point a process at it with `HF_ENDPOINT`. It serves repositories made of bytes, can gate them, fail for a while, or
break off in the middle of a file, and notes every request.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

_API = re.compile(r"^/api/models/(?P<repo>[^/]+(?:/[^/]+)?)/(?P<what>revision|tree)/(?P<revision>[^/]+)$")
_API_MAIN = re.compile(r"^/api/models/(?P<repo>[^/]+(?:/[^/]+)?)$")
_FILE = re.compile(r"^/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)$")


@dataclass
class Repository:
    """Revisions to commits, commits to files."""

    gated: bool = False
    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], *names: str) -> str:
        """Add a commit, give it these names beside `main`, and return its hash."""
        sha = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[sha] = files
        for name in ("main", *names):
            self.revisions[name] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.revisions.get(revision)


class HubServer:
    """The server, in a thread of its own; a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []  #: `METHOD path` of each
        self.failures = 0  #: how many of the next requests are answered with `failure_status`
        self.failure_status = 503
        self.break_off = 0  #: how many of the next files end in the middle
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], *revisions: str, gated: bool = False) -> str:
        """Add a commit to a repository, made if need be; return its hash."""
        repository = self.repositories.setdefault(name, Repository(gated))
        return repository.commit(files, *revisions)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type["_Handler"]:
        return type("Handler", (_Handler,), {"hub": self})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.failures > 0:
            self.hub.failures -= 1
            return self._send(self.hub.failure_status, b"")
        match = _API.match(path) or _API_MAIN.match(path) or _FILE.match(path)
        if match is None:
            return self._refuse(404, "EntryNotFound")
        found = match.groupdict()
        repository = self.hub.repositories.get(found["repo"])
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        commit = repository.find(found.get("revision") or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if "name" in found:
            return self._send_file(repository, commit, found["name"])
        return self._send_listing(found.get("what"), found["repo"], repository, commit)

    def _send_listing(self, what: str | None, name: str, repository: Repository, commit: str) -> None:
        files = repository.commits[commit]
        if what == "tree":
            body: object = [
                {"type": "file", "path": path, "size": len(data), "oid": _digest(data)} for path, data in files.items()
            ]
        else:
            siblings = [{"rfilename": path, "size": len(data), "blobId": _digest(data)} for path, data in files.items()]
            gated = "manual" if repository.gated else False
            body = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "gated": gated, "tags": []}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repository: Repository, commit: str, name: str) -> None:
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        data = repository.commits[commit].get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        if wanted and int(wanted[1]) > 0:
            begin = int(wanted[1])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[begin:], headers)
        return self._send(200, data, headers)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.break_off and len(body) > 1000 and status in (200, 206):
            self.hub.break_off -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
