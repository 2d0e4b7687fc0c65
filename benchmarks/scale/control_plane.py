"""The queue without work: how soon a short job ends, what a chunk costs, and how long a list of many jobs takes.

Times of the commands are the best of several runs: what else the machine does only makes them longer.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.scale.processes import QueueProcesses, lines
from common.jobs import JobSpec, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger

_RUNS = 9


def measure(chunks: int, jobs: int) -> str:
    """Return the figures of a warm queue with one worker, a job of `chunks` chunks, and then `jobs` jobs."""
    with tempfile.TemporaryDirectory() as base, QueueProcesses(Path(base), HUGQUEUE_PRELOAD="test-echo") as processes:
        # Users' modules are compiled when they are installed.
        processes.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{base}/compiled"}
        processes.start_workers(1)
        return "\n".join([_short_job(processes), _chunk_costs(processes, chunks), _listing(processes, jobs)])


def _short_job(processes: QueueProcesses) -> str:
    source, output = lines(processes.directory / "few.txt", 100), processes.directory / "few.jsonl"
    submit = ("submit", "--task", "test-echo", str(source), "-o", str(output))
    cpu, wall = _best(processes, *submit)
    before = processes.server.client.info("stats")["total_commands_processed"]
    _run(processes, *submit)
    commands = processes.server.client.info("stats")["total_commands_processed"] - before
    job = next(iter(JobStore(processes.server.client, 100).each_job()))
    queued = 1000 * ((job.finished_at or 0) - (job.accepted_at or 0))
    return (
        f"100 records from submit to results: {wall:.2f} s, {cpu:.2f} s of CPU for the command; {queued:.0f} ms of it "
        f"from accepted to completed, {commands} commands in Redis (scripts' own and the worker's included)"
    )


def _chunk_costs(processes: QueueProcesses, chunks: int) -> str:
    source = lines(processes.directory / "many.txt", chunks)
    before = processes.seconds()
    begun = time.perf_counter()
    job = processes.shell.submit("--task", "test-echo", "--chunk-size", "1", str(source))
    submitted = time.perf_counter() - begun
    times = processes.wait(job)
    wall = times["ended"] - times["accepted"]
    costs = {name: 1000 * (after - before[name]) / chunks for name, after in processes.seconds().items()}
    each = ", ".join(f"{name} {cost:.2f} ms" for name, cost in costs.items())
    return (
        f"{chunks:,} chunks of one record, one worker: {chunks / wall:,.0f} chunks/s; submitted in {submitted:.1f} s; "
        f"CPU for each: {each}; {1000 / sum(costs.values()):,.0f} chunks/s on one core for all of these"
    )


def _listing(processes: QueueProcesses, jobs: int) -> str:
    store, ledger = JobStore(processes.server.client, 3600), Ledger(processes.server.client, 30)
    for number in range(jobs):
        spec = JobSpec(new_job_id(), "fill-mask", model="org/name", queue="gpu", created_at=time.time() + number)
        store.create(spec)
        ledger.accept(spec.id, 1, 100)
    found = []
    for arguments in (("jobs",), ("jobs", "--status", "completed", "--limit", str(jobs))):
        cpu, wall = _best(processes, *arguments)
        found.append(f"`producer {' '.join(arguments)}` among {jobs:,} jobs: {wall:.2f} s, {cpu:.2f} s of CPU")
    return "\n".join(found)


def _best(processes: QueueProcesses, *arguments: str) -> tuple[float, float]:
    """Return the least CPU seconds and the least time of several runs of `producer`."""
    cpu, wall = zip(*(_run(processes, *arguments) for _ in range(_RUNS)), strict=True)
    return min(cpu), min(wall)


def _run(processes: QueueProcesses, *arguments: str) -> tuple[float, float]:
    begun = time.perf_counter()
    command = [sys.executable, "-P", "-m", "producer.cli", *arguments]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=processes.environ, cwd=processes.directory, stdin=quiet, stdout=quiet, stderr=quiet
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - begun
