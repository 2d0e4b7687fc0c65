"""Jobs in Redis that another release wrote: told in a sentence, not misread."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.redis import keys
from common.redis.schema import SCHEMA
from hugqueue import Client, UsageError
from tests.support.processes import RedisServer, Shell, Workers, wait_until


def test_the_schema_is_noted_with_the_first_job_and_not_before(
    shell: Shell, server: RedisServer, tmp_path: Path
) -> None:
    shell.run("jobs")
    assert not server.client.keys()
    (tmp_path / "in.txt").write_text("a\n")
    shell.submit("--task", "test-echo", "in.txt")
    assert int(server.client.get(keys.SCHEMA)) == SCHEMA
    shell.run("jobs")


@pytest.mark.parametrize("schema", ["999", "no number \x1b[31m"])
def test_a_state_of_another_schema_is_refused_in_a_sentence(
    shell: Shell, server: RedisServer, start_workers: Callable[..., Workers], tmp_path: Path, schema: str
) -> None:
    server.client.set(keys.SCHEMA, schema)
    before = sorted(server.client.keys())
    (tmp_path / "in.txt").write_text("a\n")
    for command in (
        ["jobs"],
        ["submit", "--task", "test-echo", "in.txt"],
        ["wait", "000000000000"],
        ["up", "--no-flower"],
    ):
        told = shell.run(*command, status=2).stderr
        assert "by another release of hugqueue" in told and f"uses {SCHEMA}" in told, told
        assert "\x1b" not in told and "Traceback" not in told
    with pytest.raises(UsageError, match="another release"):
        Client(server.url)
    workers = start_workers(ready=False)
    assert wait_until(lambda: workers.process and workers.process.poll(), 60) == 2
    assert "by another release of hugqueue" in workers.text() and "Traceback" not in workers.text()
    assert sorted(server.client.keys()) == before
