"""Large job: many short lines from a file to a directory.

Reports time and CPU time by phase and process, the longest scripts in Redis, memory, and lost and duplicate records.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import redis

from benchmarks.scale.processes import QueueProcesses, lines
from common.queue.jobs import JobStore
from common.redis.scripts import script_text

#: The work per line does not matter here: the runner returns it in capitals, a thousand lines at once.
OPTIONS = ("--task", "test-echo", "-p", "batch=1000")


@dataclass(frozen=True, slots=True)
class Command:
    """A finished command."""

    seconds: float
    cpu: float  #: CPU seconds
    peak: float  #: peak resident memory in MB
    out: str


def measure(records: int, store: Path | None) -> str:
    """Return the figures of a job of `records`, payloads under `store`."""
    with tempfile.TemporaryDirectory() as base:
        place, shared = store or Path(base) / "store", Path(base) / "shared"
        for directory in (place, shared):
            directory.mkdir(exist_ok=True)
        with QueueProcesses(Path(base), HUGQUEUE_STORE_URL=str(place), HUGQUEUE_SHARED=str(shared)) as processes:
            processes.start_workers(2)
            copied = lines(Path(base) / "lines.txt", records, "the quick brown fox {} jumps")
            in_place = lines(shared / "lines.txt", records, "the quick brown fox {} jumps")
            found = ["#### Input copied into the store", *_run(processes, copied, records, shared / "one")]
            found += ["#### Input read in place", *_run(processes, in_place, records, shared / "two")]
    return "\n".join(found)


def _run(processes: QueueProcesses, source: Path, records: int, output: Path) -> Iterator[str]:
    client = processes.server.client
    times = _CommandTimes(client)
    before, used = client.info("memory")["used_memory"], processes.seconds()
    submitted = _command(processes, "submit", *OPTIONS, str(source), "-o", f"{output}/", "--no-wait")
    job = submitted.out.strip()
    rate = records / submitted.seconds
    yield (
        f"submit: {submitted.seconds:.1f} s ({submitted.cpu:.1f} s of CPU), {rate:,.0f} records/s, "
        f"peak {submitted.peak:.0f} MB"
    )
    peak, (accepted, ended) = _watch(processes, job, times)
    yield f"run, by two workers: {ended - accepted:.1f} s after it was accepted; chunks: {_chunks(processes, job)}"
    spent = ", ".join(f"{name} {after - used[name]:.1f} s" for name, after in processes.seconds().items())
    yield f"CPU of submit and run: the command {submitted.cpu:.1f} s, {spent}; in Redis: {times.longest()}"
    results = _command(processes, "results", job, "-o", str(processes.directory / f"{job}.jsonl"))
    yield f"results into one file: {results.seconds:.1f} s ({results.cpu:.1f} s of CPU), peak {results.peak:.0f} MB"
    yield f"Redis: {before / 1e6:.1f} MB before, {peak / 1e6:.1f} MB at its peak"
    parts = _ids(output.glob("part-*.parquet"))
    yield f"records lost: {records - len(set(parts))}, duplicated: {len(parts) - len(set(parts))}"


def _watch(processes: QueueProcesses, job_id: str, times: "_CommandTimes") -> tuple[int, tuple[float, float]]:
    """Wait for a job; return the peak memory of Redis, and the times at which the job was accepted and ended."""
    client, peak = processes.server.client, 0
    store = JobStore(client, 100)
    while not (job := store.job(job_id)).status.finished:
        peak = max(peak, client.info("memory")["used_memory"])
        times.collect()
        time.sleep(0.1)
    return peak, (job.accepted_at or 0, job.finished_at or 0)


class _CommandTimes:
    """What Redis spends on each command and script, from its log of slow commands, which holds all of them here."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        lua = files("common.redis") / "lua"
        names = [file.name.removesuffix(".lua") for file in lua.iterdir() if file.name != "shared.lua"]
        texts = {name: script_text(name).encode() for name in names}
        self._names = {hashlib.sha1(text, usedforsecurity=False).hexdigest(): name for name, text in texts.items()}
        self._microseconds: Counter[str] = Counter()
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", 100_000)
        client.slowlog_reset()

    def collect(self) -> None:
        """Move the log here: it takes memory in Redis."""
        entries = self._client.slowlog_get(100_000)
        self._client.slowlog_reset()
        for entry in entries:
            command, _, rest = entry["command"].decode(errors="replace").partition(" ")
            self._microseconds[self._names.get(rest.partition(" ")[0], command)] += entry["duration"]

    def longest(self) -> str:
        """Return the commands and scripts that took most time, and the time of all."""
        self.collect()
        found = ", ".join(f"`{name}` {spent / 1e6:.2f} s" for name, spent in self._microseconds.most_common(4))
        return f"{found}; all commands {self._microseconds.total() / 1e6:.2f} s"


def _chunks(processes: QueueProcesses, job_id: str) -> int:
    return JobStore(processes.server.client, 100).job(job_id).chunks or 0


def _ids(parts: Iterator[Path]) -> list[str]:
    import pyarrow.parquet as pq

    return [id_ for part in parts for id_ in pq.read_table(part, columns=["id"])["id"].to_pylist()]


def _command(processes: QueueProcesses, *arguments: str) -> Command:
    """Run `producer` and measure its time and peak memory."""
    begun = time.perf_counter()
    command = [sys.executable, "-P", "-m", "producer.cli", *arguments]
    process = subprocess.Popen(
        command,
        env=processes.environ,
        cwd=processes.directory,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    cpu = usage.ru_utime + usage.ru_stime
    return Command(time.perf_counter() - begun, cpu, usage.ru_maxrss / 1e3, out)
