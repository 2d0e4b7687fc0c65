"""A worker that runs for days does not grow: thousands of chunks of changing lengths, resident memory flat."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from common.queue.jobs import JobStore
from tests.support.processes import DEMO_MODEL, RedisServer, Shell, Workers, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

StartWorkers = Callable[..., Workers]

#: Growth that is none: allocators keep some pages, and give some back.
MAX_MIB = 25.0


class Load:
    """Jobs of random texts, and what the worker weighs after each."""

    def __init__(self, shell: Shell, server: RedisServer, workers: Workers, directory: Path) -> None:
        self.shell, self.workers, self.directory = shell, workers, directory
        self.store = JobStore(server.client, result_ttl=100)
        self.dice = random.Random(1)

    def run(self, text: Callable[[random.Random], str], chunks: int, per_chunk: int, *options: str) -> list[float]:
        """Run a job of `chunks` chunks; return the resident memory of Celery and device process, in MiB."""
        source = self.directory / "in.txt"
        with source.open("w") as file:
            file.writelines(f"{text(self.dice)}\n" for _ in range(chunks * per_chunk))
        job = self.shell.submit(*options, str(source), "--chunk-size", str(per_chunk))
        wait_until(lambda: self.store.job(job).status.finished, 900, "the job ends")
        found = self.store.job(job)
        assert found.status == "completed" and found.counts.succeeded == chunks * per_chunk
        self.store.delete(job)
        return [process.memory_info().rss / 2**20 for process in (self.workers.celery(), self.workers.device())]


def test_thousands_of_chunks_leave_the_worker_as_large_as_it_was(
    shell: Shell, server: RedisServer, start_workers: StartWorkers, tmp_path: Path
) -> None:
    load = Load(shell, server, start_workers(), tmp_path)
    task = ("--task", "test-echo")
    load.run(lambda dice: "x" * dice.randint(1, 20_000), 1000, 5, *task)
    sizes = [load.run(lambda dice: "x" * dice.randint(1, 20_000), 1000, 5, *task) for _ in range(4)]
    for before, after in zip(sizes[0], sizes[-1], strict=True):
        assert after - before < MAX_MIB, sizes


def test_thousands_of_chunks_do_not_grow_the_worker(
    shell: Shell, server: RedisServer, start_workers: StartWorkers, tmp_path: Path
) -> None:
    preload = [f"--preload={task}={DEMO_MODEL}" for task in ("fill-mask", "embedding")]
    load = Load(shell, server, start_workers(*preload), tmp_path)

    def text(dice: random.Random) -> str:
        return "The capital of France is [MASK]. " + "word " * dice.randint(0, 20)

    def both() -> list[float]:
        load.run(text, 250, 8, "--task", "fill-mask", "-m", str(DEMO_MODEL))
        return load.run(text, 250, 8, "--task", "embedding", "-m", str(DEMO_MODEL))

    both()
    sizes = [both() for _ in range(4)]
    for before, after in zip(sizes[0], sizes[-1], strict=True):
        assert after - before < MAX_MIB, sizes
