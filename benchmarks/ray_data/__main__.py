"""`python -m benchmarks.ray_data --python PATH`: compares hugqueue with Ray Data running sentence-transformers.

Both read the same file of texts and write Parquet files of vectors; each time includes the start of the command.
Ray needs its own environment (`make bench-ray` creates it), because it requires other versions than hugqueue.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pyarrow.parquet as pq

from benchmarks.machine import described
from benchmarks.measure import Contestant, measure, table
from benchmarks.models import minilm
from benchmarks.parity import notes
from benchmarks.queue import running_queue
from benchmarks.strategies import Strategy, Work, whole_job
from benchmarks.workloads import texts

_JOB = "hugqueue, file to file"
_SCRIPT = Path(__file__).parent / "embed.py"


def main() -> None:
    """Parse the command line, run both in turn, and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.ray_data", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of the environment with Ray")
    parser.add_argument("--records", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the queue is stopped too
    work = Work("embedding", minilm())
    inputs = texts("mixed", chosen.records)
    print(described(), flush=True)
    with tempfile.TemporaryDirectory() as base, running_queue(work, Path(base)) as environ:
        contestants = {
            _JOB: Contestant(lambda: whole_job(work, Path(base), environ)),
            **{
                f"Ray Data with sentence-transformers, batches of {size}": Contestant(
                    lambda size=size: ray_data(work, size, chosen.python.absolute())
                )
                for size in (32, 64)
            },
        }
        figures = measure(contestants, inputs, chosen.rounds)
    title = f"embedding, mixed: {len(inputs)} records, file to file, {chosen.rounds} rounds"
    print(table(title, figures, _JOB, notes(work.task, figures, _JOB)))
    taken = statistics.median(figures[_JOB].seconds)
    print(f"\nhugqueue took {taken:.1f} s; Ray's time includes the start of Ray and its actor, and loading the model.")


def ray_data(work: Work, batch: int, python: Path) -> Strategy:
    """Return Ray Data's `map_batches`, run as a command in its own environment."""

    def run(inputs: list[str]) -> list[object]:
        with tempfile.TemporaryDirectory() as base:
            source, target = Path(base) / "in.txt", Path(base) / "out"
            source.write_text("".join(f"{text}\n" for text in inputs))
            command = [python, "-P", _SCRIPT, work.model, source, target, str(batch)]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environ(), timeout=600)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            return pq.read_table(target).column("output").to_pylist()

    return run


def _environ() -> dict[str, str]:
    return os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


if __name__ == "__main__":
    main()
