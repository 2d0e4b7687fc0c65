"""A worker whose clock is wrong judges nobody's lease by it: see also `test_frozen`."""

import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from common.store.heartbeats import living
from tests.faults.jobs import LONG, Batch
from tests.faults.producers import attempts
from tests.processes import RedisServer, Workers, wait_until

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]

pytestmark = pytest.mark.skipif(
    not shutil.which("faketime"), reason="faketime is not installed (apt-get install faketime)"
)


def clock(offset: str) -> dict[str, str]:
    """What the environment of a process holds whose clock is wrong."""
    shown = subprocess.run(["faketime", "-f", offset, "env"], check=True, capture_output=True, text=True).stdout
    values = dict(line.split("=", 1) for line in shown.splitlines())
    return {name: values[name] for name in ("LD_PRELOAD", "FAKETIME")}


def test_a_clock_that_is_an_hour_off_ends_no_lease_that_is_kept(
    server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    workers = [start_workers(ready=False, **clock(offset)) for offset in ("+1h", "-1h")]
    beats = wait_until(lambda: len(found := living(server.client)) == 2 and found, LONG, "both are there")
    assert sorted(round((beat.started_at - time.time()) / 3600) for beat in beats) == [-1, 1]
    batch = new_batch(20, seconds=5).submit()  # two chunks, each of them longer than a lease
    batch.finish()
    assert set(batch.runs().values()) == {1}
    assert set(attempts(batch).values()) == {1}
    assert not any("open again" in each.text() for each in workers)
