"""Redis is there and refuses for a while: it became a replica, lost its replicas, or is busy with a script."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import redis

from common.redis.client import is_transient
from tests.support.fault_jobs import Batch
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]

_WRITE = "redis.call('set', KEYS[1], 1)"


@contextmanager
def readonly(server: RedisServer) -> Iterator[None]:
    server.client.replicaof("127.0.0.1", "1")
    yield
    server.client.replicaof("NO", "ONE")


@contextmanager
def noreplicas(server: RedisServer) -> Iterator[None]:
    server.client.config_set("min-replicas-to-write", 1)
    yield
    server.client.config_set("min-replicas-to-write", 0)


@contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    server.client.config_set("lua-time-limit", 50)

    def spin() -> None:
        with suppress(redis.RedisError):
            server.client.eval("while true do end", 0)

    spinning = threading.Thread(target=spin)
    spinning.start()
    wait_until(lambda: isinstance(refusal(server), redis.ResponseError), 10, "it refuses")
    yield
    server.client.script_kill()
    spinning.join()


def refusal(server: RedisServer, *, in_script: bool = False) -> Exception | None:
    """What Redis answers to a write."""
    try:
        if in_script:
            server.client.eval(_WRITE, 1, "a key")
        else:
            server.client.set("a key", 1)
    except redis.RedisError as error:
        return error
    return None


REFUSALS = [readonly, noreplicas, busy]


@pytest.mark.parametrize("refusing", REFUSALS)
@pytest.mark.parametrize("in_script", [False, True])
def test_a_temporary_refusal_of_redis_is_a_transient_error(
    server: RedisServer, refusing: Callable, in_script: bool
) -> None:
    with refusing(server):
        error = refusal(server, in_script=in_script)
        assert error and is_transient(error), error
    assert refusal(server) is None
    assert not is_transient(redis.ResponseError("ERR BUSYNESS is no code, nor is a word like READONLY: no"))


@pytest.mark.parametrize("refusing", REFUSALS)
def test_a_redis_that_refuses_for_a_while_is_waited_for(
    server: RedisServer, shell: Shell, start_workers: StartWorkers, new_batch: NewBatch, refusing: Callable
) -> None:
    workers = start_workers()
    batch = new_batch(40, chunk=5, seconds=0.5).submit()
    watching = shell.popen("watch", batch.id)
    batch.wait_for_records(10)
    assert watching.stderr and watching.stderr.readline(), "it has told of progress, so it has connected"
    with refusing(server):
        wait_until(lambda: workers.text().count("waiting for Redis") >= 3, 30, "running chunks wait")
        refused = shell.run("submit", "--task", "test-echo", str(batch.source), status=1)
        assert "Redis at" in refused.stderr and "Traceback" not in refused.stderr
    batch.finish()
    assert set(batch.runs().values()) == {1}, "nothing is computed twice"
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, out + err
