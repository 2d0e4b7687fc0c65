"""A stand-in for the Hugging Face Hub that can be written: repositories, tokens, commits, LFS uploads.

It has the routes that `huggingface_hub` calls to read and write datasets and models, with LFS's basic transfer. Point a
process at it with `environ`. Requests can be made to fail, and commits note when they were made.
"""

import base64
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

_REPO = r"(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
#: Name of what answers -> paths.
_ROUTES = {
    "whoami": r"/api/whoami-v2",
    "create": r"/api/repos/create",
    "validate": r"/api/validate-yaml",
    "info": rf"/api/{_REPO}(?:/revision/(?P<revision>[^/]+))?",
    "tree": rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?",
    "paths_info": rf"/api/{_REPO}/paths-info/(?P<revision>[^/]+)",
    "may_write": rf"/api/{_REPO}/auth-check/write",
    "preupload": rf"/api/{_REPO}/preupload/(?P<revision>[^/]+)",
    "commit": rf"/api/{_REPO}/commit/(?P<revision>[^/]+)",
    "batch": r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "store": r"/lfs/(?P<oid>[0-9a-f]{64})",
    "verify": r"/lfs/verify",
    "file": r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
}
_LARGE = (".parquet", ".safetensors")


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    at: float  #: `time.time()` when it was made
    files: Mapping[str, bytes]  #: all of the repository
    changed: tuple[str, ...] = ()


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def add(self, files: Mapping[str, bytes], message: str = "by hand") -> Commit:
        """Add a commit with these files beside those that are there."""
        together = {**(self.head.files if self.commits else {}), **files}
        sha = hashlib.sha1(repr((len(self.commits), message, sorted(files))).encode()).hexdigest()
        self.commits.append(Commit(sha, message, time.time(), together, tuple(files)))
        return self.head


@dataclass
class Fault:
    """What the next requests of a route are answered with."""

    route: str
    status: int
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    after: bool = False  #: only the answer is lost: what was asked for is done


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"
    organizations: Mapping[str, str] = field(default_factory=dict)  #: with the role in each

    def may_write(self, namespace: str) -> bool:
        allowed = [self.name, *(org for org, role in self.organizations.items() if role != "read")]
        return self.role != "read" and namespace in allowed


class HubRepositories:
    """The server, in a thread of its own; a context manager."""

    def __init__(self) -> None:
        self.datasets: dict[str, Repository] = {}
        self.models: dict[str, Repository] = {}
        self.users = {
            "hf_maria": User("maria", organizations={"lab": "write", "school": "read"}),
            "hf_reader": User("maria", role="read"),
        }
        self.faults: list[Fault] = []
        self.interfere: list[Callable[[Repository], object]] = []  #: each is called once, when a commit arrives
        self.hold = threading.Event()  #: while it is not set, commits that were made are not answered
        self.hold.set()
        self.requests: list[str] = []  #: names of routes
        self.objects: dict[str, bytes] = {}
        self.stored: list[str] = []  #: the LFS objects that were uploaded, in order
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environ(self, token: str | None = "hf_maria", seconds: float = 0.2) -> dict[str, str]:
        """The environment of a process that uses this hub, with a commit at most every so many seconds."""
        found = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        found |= {"HUGQUEUE_HUB_COMMIT": str(seconds), "HUGQUEUE_HUB_SHARD_BYTES": "1"}
        return found if token is None else found | {"HF_TOKEN": token}

    def add_dataset(self, name: str, files: Mapping[str, bytes], **options: bool) -> Repository:
        found = self.datasets[name] = Repository(**options)
        found.add(files)
        return found

    def repositories(self, kind: str | None) -> dict[str, Repository]:
        return self.datasets if kind in ("dataset", "datasets/") else self.models

    def rows(self, name: str, split: str = "train") -> list[dict[str, Any]]:
        """The rows of a split of a dataset's latest commit, in the order of its files."""
        files = self.datasets[name].head.files
        shards = [files[path] for path in sorted(files) if path.startswith(f"data/{split}-")]
        tables = [pq.read_table(io.BytesIO(shard), use_threads=False) for shard in shards]
        return pa.concat_tables(tables).to_pylist() if tables else []

    def __enter__(self) -> "HubRepositories":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients are killed: what they leave is no error of the test."""


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "refused") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class _Handler(BaseHTTPRequestHandler):
    hub: HubRepositories
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: else each answer waits for an acknowledgement

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query, self.body = parse_qs(url.query), self._read_body()
        try:
            route, found = self._route(url.path)
            self.hub.requests.append(route)
            fault = next((fault for fault in self.hub.faults if fault.route == route and fault.times), None)
            if fault is not None:
                fault.times -= 1
            if fault is None or fault.after:
                answer = getattr(self, f"_{route}")(**found)
            if fault is not None:
                return self._send(fault.status, b"{}", fault.headers)
        except Refused as refused:
            return self._send(refused.status, json.dumps({"error": str(refused)}).encode(), refused.headers)
        if route == "commit":
            self.hub.hold.wait(60)
        if isinstance(answer, tuple):
            return self._send(*answer)
        return self._send(200, json.dumps(answer).encode())

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - names of the library

    def _route(self, path: str) -> tuple[str, dict[str, Any]]:
        for name, expression in _ROUTES.items():
            if match := re.fullmatch(expression, path):
                return name, {key: value and unquote(value) for key, value in match.groupdict().items()}
        raise Refused(404, "EntryNotFound", f"no route {path}")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who asks, and for what

    def _user(self) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _repository(self, kind: str | None, repo: str, *, write: bool = False) -> Repository:
        user, found = self._user(), self.hub.repositories(kind).get(repo)
        member = user is not None and repo.partition("/")[0] in (user.name, *user.organizations)
        if found is None or (found.private and not member):
            raise Refused(404, "RepoNotFound", "Repository not found")
        if write and not (user and user.may_write(repo.partition("/")[0])):
            raise Refused(403, message="you don't have the rights to write to this repository")
        return found

    def _commit_of(self, kind: str | None, repo: str, revision: str | None) -> Commit:
        found = self._repository(kind, repo)
        for commit in found.commits:
            if commit.sha == revision:
                return commit
        if revision not in (None, "main"):
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return found.head

    # Routes

    def _whoami(self) -> Any:
        user = self._user()
        if user is None:
            raise Refused(401, message="Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in user.organizations.items()]
        token = {"accessToken": {"displayName": "test", "role": user.role}}
        return {"type": "user", "name": user.name, "orgs": orgs, "auth": {"type": "access_token", **token}}

    def _create(self) -> Any:
        asked, user = json.loads(self.body), self._user()
        namespace = asked.get("organization") or (user.name if user else "")
        if user is None or not user.may_write(namespace):
            raise Refused(403, message=f"You don't have the rights to create a repository under {namespace}")
        name, kind = f"{namespace}/{asked['name']}", asked.get("type") or "model"
        with self.hub.lock:
            if name in self.hub.repositories(kind):
                raise Refused(409, message="You already created this repo")
            made = self.hub.repositories(kind)[name] = Repository(private=asked.get("visibility") == "private")
            made.add({".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        return {"url": f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}", "name": name}

    def _validate(self) -> Any:
        return {"errors": [], "warnings": []}

    def _info(self, kind: str, repo: str, revision: str | None) -> Any:
        commit, found = self._commit_of(kind, repo, revision), self._repository(kind, repo)
        siblings = [{"rfilename": name} for name in commit.files]
        access = {"private": found.private, "gated": "manual" if found.gated else False}
        return {"id": repo, "sha": commit.sha, **access, "siblings": siblings, "tags": []}

    def _tree(self, kind: str, repo: str, revision: str, path: str | None) -> Any:
        files = self._commit_of(kind, repo, revision).files
        inside = [name for name in files if not path or name.startswith(f"{path}/")]
        if self.query.get("recursive", ["false"])[0].lower() == "true":
            return [_entry(name, files[name]) for name in inside]
        depth = len(path.split("/")) if path else 0
        heads = dict.fromkeys("/".join(name.split("/")[: depth + 1]) for name in inside)
        return [_entry(name, files.get(name)) for name in heads]

    def _paths_info(self, kind: str, repo: str, revision: str) -> Any:
        files = self._commit_of(kind, repo, revision).files
        is_json = self.body.startswith(b"{")
        names = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        there = [name for name in names if name in files or any(file.startswith(f"{name}/") for file in files)]
        return [_entry(name, files.get(name)) for name in there]

    def _may_write(self, kind: str, repo: str) -> Any:
        self._repository(kind, repo, write=True)
        return {}

    def _preupload(self, kind: str, repo: str, revision: str) -> Any:
        files = self._repository(kind, repo, write=True).head.files
        return {
            "files": [
                {
                    "path": (path := file["path"]),
                    "uploadMode": "lfs" if path.endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(path, files[path]) if path in files else None,
                }
                for file in json.loads(self.body)["files"]
            ]
        }

    def _batch(self, kind: str | None, repo: str) -> Any:
        self._repository(kind, repo, write=True)
        objects = json.loads(self.body)["objects"]
        for asked in objects:
            if asked["oid"] not in self.hub.objects:
                links = {"upload": asked["oid"], "verify": "verify"}
                asked["actions"] = {name: {"href": f"{self.hub.url}/lfs/{link}"} for name, link in links.items()}
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, message="not the content of this hash")
        self.hub.objects[oid] = self.body
        self.hub.stored.append(oid)
        return {}

    def _verify(self) -> Any:
        asked = json.loads(self.body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, message="no such object")
        return {}

    def _commit(self, kind: str, repo: str, revision: str) -> Any:
        found = self._repository(kind, repo, write=True)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            if self.hub.interfere:
                self.hub.interfere.pop(0)(found)
            if header.get("parentCommit") not in (None, found.head.sha):
                raise Refused(412, message="A commit has happened since. Please refresh and try again.")
            files = {line["value"]["path"]: self._content(line["key"], line["value"]) for line in lines[1:]}
            made = found.add(files, header["summary"])
        return {"success": True, "commitOid": made.sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{made.sha}"}

    def _content(self, key: str, value: Mapping[str, Any]) -> bytes:
        if key == "file":
            return base64.b64decode(value["content"])
        if key != "lfsFile" or value["oid"] not in self.hub.objects:
            raise Refused(400, message=f"{key} {value['path']}: no such object")
        return self.hub.objects[value["oid"]]

    def _file(self, kind: str | None, repo: str, revision: str, path: str) -> Any:
        commit, found, user = self._commit_of(kind, repo, revision), self._repository(kind, repo), self._user()
        if found.gated and not (user and user.may_write(repo.partition("/")[0])):
            raise Refused(403, "GatedRepo", "Access to this dataset is restricted")
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = commit.files[path]
        headers = {"ETag": f'"{_oid(path, data)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if wanted := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", "")):
            begin, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            part = data[begin : end + 1]
            return 206, part, headers | {"Content-Range": f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"}
        return 200, data, headers


def _oid(path: str, data: bytes) -> str:
    if path.endswith(_LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
    return {"type": "file", "path": path, "size": len(data), "oid": _oid(path, data)}
