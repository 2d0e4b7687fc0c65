"""Workers and producers with directories of their own share work and results through Redis and the store alone."""

from pathlib import Path

from tests.support.isolated_machines import Machine, share_work, working
from tests.support.processes import RedisServer


def test_workers_share_work_and_results_through_the_store_alone(server: RedisServer, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    producer, *others = (Machine(tmp_path, name, server.url, shared) for name in ("producer", "one", "two"))
    with working(others, server.client):
        share_work(producer, server.client, shared)
