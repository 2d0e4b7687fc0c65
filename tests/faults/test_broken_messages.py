"""Messages that no program of ours wrote: logged, set aside, met once; every worker lives and goes on."""

import os
from collections.abc import Callable

import pytest

from common.broker.transport import MAX_DEAD_LETTER_BYTES, MAX_DEAD_LETTERS
from common.redis.keys import CELERY_PREFIX, DEAD_LETTERS
from tests.support.fault_jobs import LONG, Batch
from tests.support.forged_messages import FORGED, NOT_JSON, NOT_OBJECTS, QUEUE, all_broken
from tests.support.processes import RedisServer, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


def test_broken_messages_become_dead_letters_and_every_worker_survives(
    start_workers: StartWorkers, new_batch: NewBatch, server: RedisServer
) -> None:
    workers = [start_workers(), start_workers()]
    pids = [(one.celery().pid, one.device().pid) for one in workers]
    batch = new_batch(100).submit()
    broken = all_broken()
    for number, raw in enumerate(broken):
        server.client.lpush(QUEUE if number % 2 else f"{CELERY_PREFIX}cpu", raw)
    batch.finish()
    wait_until(lambda: server.client.llen(QUEUE) == server.client.llen(f"{CELERY_PREFIX}cpu") == 0, LONG, "all are met")
    after = new_batch(20).submit()
    after.finish()
    assert [(one.celery().pid, one.device().pid) for one in workers] == pids
    texts = "".join(one.text() for one in workers)
    # What Celery itself knows how to discard, it logs in its own words.
    assert texts.count("moved a message to the dead letters") >= len(NOT_JSON) + len(NOT_OBJECTS)
    assert texts.count("refused a message that is not a ticket") >= len(FORGED) - 1
    kept = server.client.lrange(DEAD_LETTERS, 0, -1)
    assert 0 < len(kept) <= MAX_DEAD_LETTERS
    assert all(len(raw) <= MAX_DEAD_LETTER_BYTES for raw in kept)


@pytest.mark.faults
def test_random_bytes_by_the_hundred_end_no_worker(
    start_workers: StartWorkers, new_batch: NewBatch, server: RedisServer
) -> None:
    workers = start_workers()
    pid = workers.celery().pid
    server.client.lpush(QUEUE, *(os.urandom(number) for number in range(1, 400)))
    batch = new_batch(20).submit()
    batch.finish()
    wait_until(lambda: server.client.llen(QUEUE) == 0, LONG, "all are met")
    assert workers.celery().pid == pid
    assert workers.text().count("moved a message to the dead letters") == 399
