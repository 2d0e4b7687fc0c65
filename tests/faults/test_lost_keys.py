"""A key of a running job is deleted, by hand or by a Redis that evicts: the job ends all the same."""

from collections.abc import Callable

import pytest

from common.redis.keys import JobKeys
from tests.support.fault_jobs import Batch
from tests.support.processes import RedisServer, Workers

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]


@pytest.mark.parametrize("name", ["open", "commits"])
def test_a_running_job_whose_key_is_deleted_is_completed(
    name: str, server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    workers = start_workers()
    batch = new_batch(60, chunk=5, seconds=0.3).submit()
    batch.wait_for_records(15)
    server.client.delete(getattr(JobKeys.of(batch.id), name))
    batch.finish()
    assert "a key was deleted" in workers.text()
    assert set(batch.runs().values()) == {1}
