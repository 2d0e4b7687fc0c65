"""A Redis that may lose jobs is told of, with what mends it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from common.redis.durability import durability_warnings
from hugqueue import Client
from tests.support.processes import RedisServer, Shell, Workers, wait_until
from tests.support.redis_acl import PASSWORD

MENDS = ("appendonly yes", "maxmemory-policy noeviction")


def weaken(server: RedisServer) -> None:
    server.client.config_set("appendonly", "no")
    server.client.config_set("maxmemory", 2**30)
    server.client.config_set("maxmemory-policy", "allkeys-lru")


def test_the_advice_fixes_the_problem(server: RedisServer) -> None:
    assert durability_warnings(server.client, server.url) == []
    weaken(server)
    told = durability_warnings(server.client, f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0")
    assert [mend for mend, sentence in zip(MENDS, told, strict=True) if f"config set {mend}`" in sentence] == [*MENDS]
    assert not any(PASSWORD in sentence for sentence in told)
    for mend in MENDS:
        server.client.execute_command("CONFIG", "SET", *mend.split())
    assert durability_warnings(server.client, server.url) == []


def test_an_eviction_policy_that_never_applies_causes_no_warning(server: RedisServer) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    assert durability_warnings(server.client, server.url) == []


def test_no_warning_is_given_when_the_user_may_not_query(server: RedisServer) -> None:
    weaken(server)
    server.client.execute_command("ACL", "SETUSER", "small", "on", f">{PASSWORD}", "+ping")
    with redis.Redis(port=server.port, username="small", password=PASSWORD) as client:
        assert durability_warnings(client, server.url) == []


@pytest.mark.parametrize("weak", [True, False])
def test_submit_and_workers_start_warn_once(
    server: RedisServer, shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path, weak: bool
) -> None:
    if weak:
        weaken(server)
    (tmp_path / "in.txt").write_text("a\n")
    workers = start_workers()
    told = shell.run("submit", "--task", "test-echo", "in.txt", "--wait").stderr
    wait_until(lambda: " ready." in workers.text(), 30)
    tried = shell.run("submit", "--task", "test-echo", "in.txt", "--dry-run").stderr
    for text in (told, tried, workers.text()):
        assert [text.count(f"config set {mend}`") for mend in MENDS] == [int(weak)] * 2


def test_a_program_is_warned_once_for_all_that_it_submits(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    weaken(server)
    with Client(server.url) as client:
        for _ in range(2):
            client.submit(task="fill-mask", records=["a [MASK]"])
    assert [caplog.text.count(f"config set {mend}`") for mend in MENDS] == [1, 1]
