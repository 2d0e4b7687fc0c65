"""Fixtures: real servers and processes, each test with its own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in list(os.environ):
    if name.startswith(("HUGQUEUE_", "CELERY_", "REDIS_")):
        del os.environ[name]

from common.store.heartbeats import living  # noqa: E402 - the environment comes first
from common.store.ledger import Ledger  # noqa: E402
from common.store.store import Store  # noqa: E402
from tests.processes import RedisServer, Shell, Workers, environment, wait_until  # noqa: E402

#: Seconds for which a lease lasts that no worker holds.
LEASE = 0.4


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their parameter: some hold the time at which they were made, and ids are the same everywhere."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server of the test's own."""
    started = RedisServer(tmp_path / "redis").start()
    yield started
    started.kill()


@pytest.fixture
def store(server: RedisServer) -> Store:
    """The store on `server`."""
    return Store(server.client, result_ttl=100)


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
        before = {beat.name for beat in living(server.client)} if ready else set()
        workers.start()
        if ready:
            wait_until(
                lambda: any(b.state == "ready" and b.name not in before for b in living(server.client)),
                60,
                f"a worker is ready: {workers.log}",
            )
        return workers

    yield start
    for workers in started:
        workers.kill()
