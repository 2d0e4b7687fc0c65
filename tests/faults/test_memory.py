"""A worker that runs for days does not grow: thousands of chunks of changing lengths, resident memory flat."""

import random
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.processes import Shell, Workers, wait_until

#: Chunks before memory is looked at for the first time: pools, caches and imports fill up meanwhile.
WARM, CHUNKS, RECORDS = 500, 4000, 5


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_memory_stays_flat_over_thousands_of_chunks(
    shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path
) -> None:
    rng = random.Random(1)
    workers = start_workers()
    source = tmp_path / "in.txt"
    with source.open("w") as file:
        file.writelines(f"{'word ' * rng.randrange(1, 2000)}\n" for _ in range(CHUNKS * RECORDS))
    job = shell.submit("--task", "test-echo", str(source), "--chunk-size", str(RECORDS))

    def done(records: int) -> bool:
        return bool(shell.status(job)["counts"]["done"] >= records)

    wait_until(lambda: done(WARM * RECORDS), 600, "the first chunks are done")
    before = {name: process.memory_info().rss for name, process in processes(workers).items()}
    wait_until(lambda: done(CHUNKS * RECORDS), 600, "all chunks are done")
    for name, process in processes(workers).items():
        grown = process.memory_info().rss - before[name]
        assert grown < 20_000_000, f"the {name} process grew by {grown / 1e6:.0f} MB"


def processes(workers: Workers) -> dict[str, psutil.Process]:
    return {"Celery": workers.celery(), "device": workers.device()}
