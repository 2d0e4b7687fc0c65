"""Benchmark processes: a redis-server and workers with the runners of the tests, and their CPU time and memory."""

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from common.queue.heartbeats import live_workers
from common.settings import Settings, load_settings
from tests.support.processes import RedisServer, Shell, environment, wait_until

#: Seconds until workers must be ready: many start at once on few cores.
_PATIENCE = 600.0


class QueueProcesses:
    """A context manager that stops all its processes at the end of the block. `directory` must be empty."""

    def __init__(self, directory: Path, **more: str) -> None:
        self.directory = directory
        self.server = RedisServer(directory / "redis").start()
        self.environ = environment(directory, self.server.url, **more)
        self.shell = Shell(self.environ, directory)
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()  # its device process ends with it
        for worker in self.workers:
            worker.wait()
        self.server.kill()

    @property
    def settings(self) -> Settings:
        """Settings of the queue, for a client in this process."""
        return load_settings(self.environ)

    def start_workers(self, count: int, at_once: int = 4) -> None:
        """Start workers, a Celery and a device process each, a few at once, until all are ready."""
        for first in range(0, count, at_once):
            for number in range(first, min(first + at_once, count)):
                self._start_worker(number)
            ready = len(self.workers)
            wait_until(lambda: self._ready() >= ready, _PATIENCE, f"{ready} workers are ready")  # noqa: B023

    def _start_worker(self, number: int) -> None:
        command = [sys.executable, "-P", "-m", "celery", "-A", "workers.app", "worker", "-n", f"bench-{number}@host"]
        command += ["--without-gossip", "--without-mingle", "--loglevel", "warning"]
        with (self.directory / f"worker-{number}.log").open("ab") as log:
            environ = self.environ | {"HUGQUEUE_DEVICE": "cpu"}
            process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.workers.append(process)

    def _ready(self) -> int:
        return sum(beat.state == "ready" for beat in live_workers(self.server.client))

    def seconds(self) -> dict[str, float]:
        """Return the CPU seconds that each kind of process has used so far."""
        celery = [psutil.Process(worker.pid) for worker in self.workers]
        assert self.server.process
        return {
            "redis-server": _used([psutil.Process(self.server.process.pid)]),
            "Celery processes": _used(celery),
            "device processes": _used(child for parent in celery for child in parent.children()),
        }

    def memory(self) -> float:
        """Return the memory of all worker processes in MB, with shared pages counted once."""
        celery = [psutil.Process(worker.pid) for worker in self.workers]
        every = [process for parent in celery for process in (parent, *parent.children())]
        return sum(process.memory_full_info().pss for process in every) / 1e6

    def wait(self, job_id: str, seconds: float = 3600.0) -> dict[str, float]:
        """Wait in this process until a job is finished; return its times."""
        from common.queue.jobs import JobStore

        store = JobStore(self.server.client, 100)
        end = time.monotonic() + seconds
        while not (job := store.job(job_id)).status.finished:
            if time.monotonic() > end:
                raise SystemExit(f"job {job_id} took longer than {seconds:.0f} s")
            time.sleep(0.1)
        return {"accepted": job.accepted_at or 0, "started": job.started_at or 0, "ended": job.finished_at or 0}


def _used(processes: Iterable[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def lines(path: Path, count: int, text: str = "line {}") -> Path:
    """Write `count` short lines to a file, and return its path."""
    with path.open("w") as file:
        file.writelines(text.format(number) + "\n" for number in range(count))
    return path
