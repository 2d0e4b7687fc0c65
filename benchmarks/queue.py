"""Benchmark queues: a redis-server and one worker with its model loaded; and one with a Celery task per record."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from celery import Celery

from benchmarks.strategies import Strategy, Work
from common.queue.heartbeats import live_workers
from common.redis.client import connect
from producer.embedded.server_binary import find_binary
from producer.embedded.state_dir import StateDir

#: Seconds until a worker must be ready.
_PATIENCE = 120.0


@contextlib.contextmanager
def running_queue(work: Work, directory: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a queue with one ready worker."""
    with _redis(directory) as url:
        environ = os.environ | {"CELERY_BROKER_URL": url, "HUGQUEUE_ANY_PATH": "1"}
        worker = [sys.executable, "-P", "-m", "workers.cli", "start", "--device", work.device, "--log-level", "info"]
        worker += ["--preload", f"{work.task}={work.model}"]
        with _process(worker, environ, directory):
            client = connect(url)
            _wait(lambda: any(beat.state == "ready" for beat in live_workers(client)), "the worker is ready", directory)
            yield environ


@contextlib.contextmanager
def task_per_record_queue(work: Work, directory: Path) -> Iterator[Strategy]:
    """Yield the strategy of one Celery task for each record."""
    with _redis(directory) as url:
        environ = os.environ | {"NAIVE_URL": url}
        app = Celery("naive", broker=url, backend=url)  # one for each queue: an app keeps its first backend
        worker = [sys.executable, "-m", "celery", "-A", "benchmarks.task_per_record", "worker", "-l", "error"]
        with _process(worker, environ, directory):
            yield lambda texts: [
                answer.get(timeout=600)
                for answer in [
                    app.send_task(
                        "benchmarks.task_per_record.predict",
                        (work.task, str(work.model), text, work.params, work.device),
                    )
                    for text in texts
                ]
            ]


@contextlib.contextmanager
def _redis(directory: Path) -> Iterator[str]:
    directory.mkdir(parents=True, exist_ok=True)
    socket = directory / "redis.sock"
    server = [str(find_binary(StateDir(directory)).path), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with _process([*server, "--dir", str(directory)], dict(os.environ), directory):
        _wait(socket.exists, "redis-server listens", directory)
        yield f"redis+socket://{socket}?virtual_host=0"


def _wait(until: Callable[[], bool], what: str, directory: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not until():
        if time.monotonic() > deadline:
            said = (directory / "log").read_text()[-2000:]
            raise TimeoutError(f"waited {_PATIENCE:.0f} s until {what}: {said}")
        time.sleep(0.1)


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str], directory: Path) -> Iterator[None]:
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
