"""Fairness: a small job behind a large one, high priority before low, and cancelling a large job."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.scale.processes import QueueProcesses, lines
from common.jobs import JobSpec, new_job_id
from common.payloads.codec import encode_records
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Record
from common.redis.keys import JobKeys

#: Seconds and records of a chunk.
SECONDS, CHUNK = 0.2, 1000


def measure(records: int) -> str:
    """Return the times of jobs of 100 records, alone and behind a job of `records`."""
    with tempfile.TemporaryDirectory() as base, QueueProcesses(Path(base)) as processes:
        processes.start_workers(1)
        options = ("--task", "test-wait", "-p", f"seconds={SECONDS}", "-p", "batch=1000", "--chunk-size", str(CHUNK))
        few, many = lines(Path(base) / "few.txt", 100), lines(Path(base) / "many.txt", records)

        def small(*more: str) -> tuple[str, float]:
            job = processes.shell.submit(*options, *more, str(few))
            times = processes.wait(job)
            return job, times["ended"] - times["accepted"]

        unloaded = small()[1]
        large = processes.shell.submit(*options, str(many))
        found = [f"a job of 100 records, alone: {unloaded:.2f} s"]
        for priority in ("normal", "high"):
            taken = small("--priority", priority)[1]
            found.append(f"behind one of {records:,}, priority {priority}: {taken:.2f} s")
        done = processes.shell.status(large)["counts"]["done"]
        found.append(f"records of the large job done by then: {done:,}")
        waits = processes.shell.submit(*options, "--priority", "low", str(few))
        processes.wait(small("--priority", "high")[0])
        found.append(f"one of low priority, behind them all: {processes.shell.status(waits)['status']}")
        processes.shell.run("cancel", large)
        processes.wait(waits)
    return "\n".join(found)


def measure_cancel(chunks: int) -> str:
    """Return the times to accept, cancel, retry and delete a job of `chunks`, and the longest time Redis is blocked."""
    with tempfile.TemporaryDirectory() as base, QueueProcesses(Path(base)) as processes:
        processes.start_workers(1)
        client = processes.server.client
        ledger, store = Ledger(client, 30), JobStore(client, 3600)
        job = _written(store, chunks)
        client.config_set("slowlog-log-slower-than", 5000)
        found = [f"accept of {chunks:,} chunks: {_milliseconds(lambda: ledger.accept(job, chunks, chunks)):.0f} ms"]
        while not store.job(job).counts.done:  # the reaper sends its tickets
            time.sleep(0.05)
        found.append(
            f"`producer cancel`: {_milliseconds(lambda: processes.shell.run('cancel', job)):.0f} ms, the whole command"
        )
        begin = time.perf_counter()
        processes.wait(job)
        found.append(f"status cancelled after that: {(time.perf_counter() - begin) * 1000:.0f} ms")
        found.append(f"retry: {_milliseconds(lambda: ledger.retry(job)):.0f} ms")
        found.append(f"cancel, the step itself: {_milliseconds(lambda: ledger.cancel(job)):.1f} ms")
        processes.wait(job)
        found.append(f"delete: {_milliseconds(lambda: store.delete(job)):.1f} ms")
        longest = max((entry["duration"] for entry in client.slowlog_get(100)), default=0)
        found.append(f"longest time that Redis was blocked: {longest / 1000:.0f} ms")
    return "\n".join(found)


def _written(store: JobStore, chunks: int) -> str:
    """Return a job with its chunks written directly, as submitting is not measured."""
    spec = JobSpec(new_job_id(), "test-wait", params={"seconds": 0.5}, created_at=time.time())
    store.create(spec)
    payload = encode_records([Record(0, "text")])
    with store.client.pipeline(transaction=False) as pipe:
        for chunk in range(chunks):
            pipe.hset(JobKeys.of(spec.id).input, str(chunk), payload)
        pipe.execute()
    return spec.id


def _milliseconds(step: Callable[[], object]) -> float:
    begun = time.perf_counter()
    step()
    return (time.perf_counter() - begun) * 1000
