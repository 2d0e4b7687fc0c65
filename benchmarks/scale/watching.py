"""Watching: what Redis spends on job events, Flower, notifications, waiting Celery tasks, and metrics."""

import contextlib
import json
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from celery import Celery

from benchmarks.scale.processes import QueueProcesses
from common.jobs import JobSpec, new_job_id
from common.payloads.codec import encode_records
from common.queue.heartbeats import live_workers
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Counts, Record
from common.redis import keys
from common.redis.keys import JobKeys
from tests.support.flower_process import flower
from tests.support.processes import command_server, free_port, wait_until
from tests.support.prometheus_server import get
from workers.worker_metrics import WorkerMetrics

#: Records of a chunk; seconds between two commits of a job, and between two scrapes.
CHUNK, COMMIT_SECONDS, SCRAPE_SECONDS = 100, 3.0, 15.0
#: Seconds for which nothing is measured, while the processes settle.
_SETTLE = 15.0


def measure(workers: int, jobs: int, seconds: float) -> str:
    """Return Redis's CPU time with `jobs` running jobs and `workers` waiting workers: unwatched, then watched."""
    unwatched, _ = _run(workers, jobs, seconds, watch=False)
    watched, rows = _run(workers, jobs, seconds, watch=True)
    return "\n".join(
        [
            f"{jobs} running jobs, each with a commit every {COMMIT_SECONDS:g} s, {workers} waiting workers, "
            f"{seconds:g} s, Redis's CPU time:",
            f"  unwatched: {unwatched:.2%} of a core",
            f"  with job events, Flower, notifications, a Celery task that waits for each job, and all metrics "
            f"every {SCRAPE_SECONDS:g} s: {watched:.2%}",
            f"  so watching takes {watched - unwatched:.2%} of a core; jobs that run in Flower: {rows}",
        ]
    )


def _run(workers: int, jobs: int, seconds: float, *, watch: bool) -> tuple[float, int]:
    """Return the share of a core that Redis uses, and how many jobs Flower shows as running."""
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = stack.enter_context(QueueProcesses(base, HUGQUEUE_QUEUES="train"))  # no device processes
        _start_workers(processes, workers, "workers.app" if watch else "benchmarks.scale.quiet_worker")
        chunks = int((seconds + 10 * _SETTLE) / COMMIT_SECONDS)
        ids = stack.enter_context(_running_jobs(processes, jobs, chunks))
        address = ""
        if watch:
            address = stack.enter_context(flower(processes.environ, base / "flower.log"))
            stack.enter_context(_scraped(processes))
            stack.enter_context(_waited_for(processes, ids))
        time.sleep(_SETTLE)
        before = _cpu(processes)
        time.sleep(seconds)
        used = _cpu(processes) - before
        rows = json.loads(get(f"{address}/api/tasks?taskname=hugqueue.job&state=PROGRESS")) if watch else ()
        return used / seconds, len(rows)


def _start_workers(processes: QueueProcesses, count: int, module: str) -> None:
    """Start Celery processes, forked from one that has imported everything."""
    for number in range(count):
        command = [module, "worker", "-n", f"bench-{number}@host", "--without-gossip", "--without-mingle"]
        with (processes.directory / f"worker-{number}.log").open("ab") as log:
            environ = processes.environ | {"HUGQUEUE_DEVICE": "cpu"}
            options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
            processes.workers.append(command_server().popen(*command, "-l", "warning", env=environ, **options))
    client = processes.server.client
    wait_until(lambda: sum(b.state == "ready" for b in live_workers(client)) == count, 300, "the workers are ready")


@contextlib.contextmanager
def _running_jobs(processes: QueueProcesses, jobs: int, chunks: int) -> Iterator[list[str]]:
    """Run jobs as long as the block lasts: this process commits their chunks, evenly. Yields their ids."""
    client = processes.server.client
    store, ledger = JobStore(client, 3600), Ledger(client, 60)
    payload = encode_records([Record(number, "text") for number in range(CHUNK)])
    ids = []
    for number in range(jobs):
        spec = JobSpec(new_job_id(), "test-echo", queue="gpu", name=f"job {number}", created_at=time.time())
        store.create(spec)
        client.hset(JobKeys.of(spec.id).input, mapping={str(chunk): payload for chunk in range(chunks)})
        ledger.accept(spec.id, chunks, chunks * CHUNK)
        ids.append(spec.id)
    stopped = threading.Event()

    def run() -> None:
        while not stopped.is_set():
            for job_id in random.sample(ids, len(ids)):
                _commit_chunk(ledger, job_id)
                if stopped.wait(COMMIT_SECONDS / jobs):
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield ids
    finally:
        stopped.set()
        thread.join()


def _commit_chunk(ledger: Ledger, job_id: str) -> None:
    ticket = min(ledger.tickets(job_id) or ledger.issue_tickets(job_id, 1), default="")
    if lease := ledger.lease(job_id, ticket, "bench", 1):
        ledger.commit(lease, Counts(CHUNK - 1, 1), {}, seconds=0.5, codes={"too_long": 1})


@contextlib.contextmanager
def _scraped(processes: QueueProcesses) -> Iterator[None]:
    """Serve `producer metrics`, and scrape it and the metrics of each worker, as long as the block lasts."""
    port, stopped = free_port(), threading.Event()
    client = processes.server.client
    names = [beat.name for beat in live_workers(client)]
    served = processes.shell.popen("metrics", "--port", str(port))
    url = f"http://127.0.0.1:{port}/metrics"

    def scrape() -> None:
        while not stopped.wait(SCRAPE_SECONDS):
            get(url)
            for name in names:
                WorkerMetrics(client, [name]).read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        served.kill()
        served.wait()


@contextlib.contextmanager
def _waited_for(processes: QueueProcesses, ids: list[str]) -> Iterator[None]:
    """Let a Celery app wait for each job, by `producer control`, as long as the block lasts."""
    url = processes.server.url
    client = processes.server.client
    with processes.shell.popen("control") as control, Celery("waiting", broker=url, backend=url) as app:
        for job_id in ids:
            app.send_task("hugqueue.wait", args=[job_id], queue="hugqueue.control")
        wait_until(lambda: client.scard(keys.WAITED) == len(ids), 300, "a task waits for each job")
        try:
            yield
        finally:
            control.kill()


def _cpu(processes: QueueProcesses) -> float:
    """Return the CPU seconds that Redis has used."""
    used = processes.server.client.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])
