"""Two workers, each in a network namespace of its own, reach nothing but Redis and the store."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.isolated_machines import Machine, share_work, working
from tests.support.processes import RedisServer

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces want root and the command `ip`"
)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def networks() -> Iterator[list[tuple[str, str]]]:
    """Two namespaces; the name of each, and under what address it sees this one."""
    made = []
    with ExitStack() as clearing:
        for number in (1, 2):
            name, link, net = f"hq-{os.getpid()}-{number}", f"hq{os.getpid()}.{number}"[-15:], f"10.213.{number}"
            _ip("netns", "add", name)
            clearing.callback(_ip, "netns", "del", name)  # its end of the link goes with it, and so does the other
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("addr", "add", f"{net}.1/24", "dev", link)
            _ip("link", "set", link, "up")
            _ip("-n", name, "addr", "add", f"{net}.2/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            made.append((name, f"{net}.1"))
        yield made


def test_workers_in_separate_networks_share_only_redis_and_the_store(
    networks: list[tuple[str, str]], tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis", "--bind", "0.0.0.0", "--protected-mode", "no").start()
    shared = tmp_path / "shared"
    try:
        producer = Machine(tmp_path, "producer", server.url, shared)
        others = [
            Machine(tmp_path, name, f"redis://{address}:{server.port}/0", shared, ("ip", "netns", "exec", name))
            for name, address in networks
        ]
        with working(others, server.client):
            share_work(producer, server.client, shared)
    finally:
        server.kill()
