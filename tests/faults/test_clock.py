"""A worker whose clock is wrong judges nobody's lease by it: see also `test_frozen`. And Redis's own clock is set."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.queue.heartbeats import live_workers
from tests.faults.test_producer_deaths import half_submitted
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Shell, Workers, wait_until
from tests.support.waiting_producers import attempts

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]

HOUR = 3600
#: Seconds that a producer may be silent.
TTL = 4.0


def clock(offset: str) -> dict[str, str]:
    """What the environment of a process holds whose clock is wrong."""
    shown = subprocess.run(["faketime", "-f", offset, "env"], check=True, capture_output=True, text=True).stdout
    values = dict(line.split("=", 1) for line in shown.splitlines())
    return {name: values[name] for name in ("LD_PRELOAD", "FAKETIME")}


@pytest.mark.skipif(not shutil.which("faketime"), reason="faketime is not installed (apt-get install faketime)")
def test_a_clock_that_is_an_hour_off_ends_no_lease_that_is_kept(
    server: RedisServer, start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    workers = [start_workers(ready=False, **clock(offset)) for offset in ("+1h", "-1h")]
    beats = wait_until(lambda: len(found := live_workers(server.client)) == 2 and found, LONG, "both are there")
    assert sorted(round((beat.started_at - time.time()) / 3600) for beat in beats) == [-1, 1]
    batch = new_batch(20, seconds=5).submit()  # two chunks, each of them longer than a lease
    batch.finish()
    assert set(batch.runs().values()) == {1}
    assert set(attempts(batch).values()) == {1}
    assert not any("open again" in each.text() for each in workers)


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    """The file that says by how many seconds the clock of `server` is off."""
    return tmp_path / "shift"


@pytest.fixture
def server(tmp_path: Path, shift: Path, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A redis-server whose clock can be set, where a test wants that."""
    environ = {}
    if "clock_of_redis" in request.node.name:
        if sys.platform != "linux" or not shutil.which("cc"):
            pytest.skip("needs a C compiler, and Linux")
        library = tmp_path / "clock_shift.so"
        source = Path(__file__).with_name("clock_shift.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        environ = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
    started = RedisServer(tmp_path / "redis", environ=environ).start()
    yield started
    started.kill()


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_clock_of_redis_that_is_set_ends_nothing_and_stops_nothing(
    seconds: int,
    server: RedisServer,
    shell: Shell,
    start_workers: StartWorkers,
    new_batch: NewBatch,
    tmp_path: Path,
    shift: Path,
) -> None:
    shell.environ["HUGQUEUE_PRODUCER_TTL"] = str(TTL)
    dying, living_on = (start_workers(HUGQUEUE_PRODUCER_TTL=str(TTL)) for _ in range(2))
    with half_submitted(shell, server, tmp_path / "ran") as (process, job):
        batch = new_batch(60, chunk=5, seconds=1.5).submit()
        batch.wait_for_records(10)
        shift.write_text(str(seconds))
        wait_until(lambda: abs(server.client.time()[0] - time.time() - seconds) < HOUR / 2, 10, "the clock is set")
        dying.kill()
        batch.finish(60)
        end = time.monotonic() + 2 * TTL
        wait_until(lambda: time.monotonic() > end or batch.store.job(job).status.finished, 60)
        out, err = process.communicate("the end\n")
        assert (process.returncode, out.strip()) == (0, job), err
    shell.run("wait", job)
    assert len(shell.results(job)) == 96
    assert "its producer died" not in living_on.text()
