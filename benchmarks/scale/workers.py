"""Many workers: the share of their time that workers wait for chunks, and the CPU time of the queue per chunk."""

import tempfile
from pathlib import Path

from benchmarks.scale.processes import QueueProcesses, lines

#: Chunks per worker: enough that the uneven distribution of the last ones matters little.
CHUNKS = 60


def measure(workers: int, seconds: float) -> str:
    """Return the figures of a job with chunks of `seconds`, run by `workers` workers."""
    with tempfile.TemporaryDirectory() as base, QueueProcesses(Path(base), HUGQUEUE_PRELOAD="test-wait") as processes:
        processes.start_workers(workers)
        chunks = workers * CHUNKS
        source = lines(Path(base) / "lines.txt", chunks)
        options = ("-p", f"seconds={seconds:g}", "-p", "tick=1", "--chunk-size", "1")
        before = processes.seconds()
        job = processes.shell.submit("--task", "test-wait", *options, str(source))
        times = processes.wait(job)
        used = {name: after - before[name] for name, after in processes.seconds().items()}
        memory = processes.memory()
    wall = times["ended"] - times["accepted"]
    return "\n".join(
        [
            f"{workers} workers, {chunks:,} chunks of {seconds:g} s: {wall:.1f} s, "
            f"efficiency {chunks * seconds / (workers * wall):.1%}; {memory / workers:.0f} MB for each worker",
            *(_cost(name, spent, chunks, wall) for name, spent in used.items()),
            _carried(used["redis-server"] / chunks, seconds),
        ]
    )


def _cost(name: str, spent: float, chunks: int, wall: float) -> str:
    return f"  {name}: {spent / chunks * 1000:.2f} ms of CPU for each chunk, {spent / wall:.1%} of one CPU"


def _carried(each: float, seconds: float) -> str:
    """Return the estimated capacity of one Redis, which uses one CPU, with half of it in reserve."""
    return f"  estimate: {0.5 * seconds / each:,.0f} workers with chunks of {seconds:g} s on half a CPU of one Redis"
