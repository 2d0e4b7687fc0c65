"""Fixtures: real servers and processes, each test with its own; a queue that the tests of a file share."""

import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in list(os.environ):
    if name.startswith(("HUGQUEUE_", "CELERY_", "REDIS_")):
        del os.environ[name]

from common.queue.heartbeats import live_workers  # noqa: E402
from common.queue.jobs import JobStore  # noqa: E402
from common.queue.ledger import Ledger  # noqa: E402
from common.settings import Settings  # noqa: E402 - the environment comes first
from producer.queue_connection import QueueConnection  # noqa: E402
from tests.support.cli_processes import Queue, running_queue  # noqa: E402
from tests.support.keyed_submits import LINES, TTL  # noqa: E402
from tests.support.processes import RedisServer, Shell, Workers, environment, wait_until  # noqa: E402

#: Seconds for which a lease lasts that no worker holds.
LEASE = 0.4
TESTS = Path(__file__).parent
#: Kinds of test files by what they name: the first that fits. `unit` is the rest.
KINDS = {
    "models": r"^\s*(import|from) (torch|datasets|(sentence_)?transformers)\b"
    r"|^\s*(import|from) workers\.(inference|device\.server|training\.trainer)\b"
    r"|\b(tiny_\w+|finetune_runs|pipeline_reference)\b",
    "processes": r"\b(subprocess|Ledger|Home|Queue|RedisServer|Shell|Workers|device_process|running_queue"
    r"|(hub|hub_dataset|s3)_server|server_binary|soak)\b",
}


@functools.cache
def kind_of(path: Path) -> str:
    """Return the marker of the tests in a file."""
    text = path.read_text("utf-8")
    return next((kind for kind, names in KINDS.items() if re.search(names, text, re.MULTILINE)), "unit")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m KIND ...` leave the files of other kinds unread: what loads torch takes ten seconds to import."""
    wanted = config.option.markexpr.partition(" ")[0]
    if wanted in ("unit", *KINDS) and collection_path.match("test_*.py") and kind_of(collection_path) != wanted:
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests with their kind, and put the folders with the longest files first."""
    folders = ("e2e", "workers", "producer", "faults", "security", "project", "common")
    items.sort(key=lambda item: [item.path.is_relative_to(TESTS / folder) for folder in folders], reverse=True)
    for item in items:
        item.add_marker(kind_of(item.path))


@pytest.fixture(autouse=True)
def forbid_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a unit test start no process, so that `make test-unit` stays what it says."""
    if "unit" in request.keywords:
        monkeypatch.setattr(subprocess.Popen, "__init__", _no_process)


def _no_process(*_: object, **__: object) -> None:
    pytest.fail("A unit test starts a process. Name what starts it in `KINDS` of tests/conftest.py.")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their parameter: some hold the time at which they were made, and ids are the same everywhere."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def idle_servers() -> Iterator[list[RedisServer]]:
    """Servers that tests of this process have left as they were started, and empty."""
    servers: list[RedisServer] = []
    yield servers
    for server in servers:
        server.kill()


@pytest.fixture
def server(idle_servers: list[RedisServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server that the test has to itself; the next one gets it, emptied, if this one has not changed it."""
    found = idle_servers.pop() if idle_servers else RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield found
    if found.reset():
        idle_servers.append(found)
    else:
        found.kill()


@pytest.fixture
def store(server: RedisServer) -> JobStore:
    """The store on `server`."""
    return JobStore(server.client, result_ttl=100)


@pytest.fixture
def ledger(server: RedisServer) -> Ledger:
    """The ledger on `server`, with leases of `LEASE` seconds."""
    return Ledger(server.client, LEASE)


@pytest.fixture
def environ(server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """An environment that points at `server`, with times short enough for tests."""
    return environment(tmp_path, server.url, HUGQUEUE_LEASE="3", HUGQUEUE_RENEW="0.3", HUGQUEUE_REAP="0.5")


@pytest.fixture
def shell(environ: dict[str, str], tmp_path: Path) -> Shell:
    """`producer` on `server`."""
    return Shell(environ, tmp_path)


@pytest.fixture
def start_workers(environ: dict[str, str], server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., Workers]]:
    """Start `workers start` with arguments; ready when it returns. All are killed in the end."""
    started: list[Workers] = []

    def start(*arguments: str, ready: bool = True, **more: str) -> Workers:
        workers = Workers(environ | more, tmp_path / f"workers{len(started)}.log", *arguments)
        started.append(workers)
        before = {beat.name for beat in live_workers(server.client)} if ready else set()
        workers.start()
        if ready:
            wait_until(
                lambda: any(b.state == "ready" and b.name not in before for b in live_workers(server.client)),
                60,
                f"a worker is ready: {workers.log}",
            )
        return workers

    yield start
    for workers in started:
        workers.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the workers of `queue` may open."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def queue(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """`producer` on a queue that all tests of a file share."""
    with running_queue(tmp_path_factory.mktemp("queue"), HUGQUEUE_SHARED=str(shared)) as running:
        yield running


@pytest.fixture
def connection(server: RedisServer, shell: Shell) -> QueueConnection:
    """What commands hold of `server`; it and `shell` soon give up a submit that falls silent."""
    shell.environ["HUGQUEUE_PRODUCER_TTL"] = TTL
    return QueueConnection(Settings(broker_url=server.url, producer_ttl=float(TTL)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """95 records, which the tests of keyed submits cut into ten chunks."""
    path = tmp_path / "in.txt"
    path.write_text("".join(LINES))
    return path
