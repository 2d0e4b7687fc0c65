"""`python -m benchmarks.scale`: measures the queue itself with many workers, chunks and records."""

import argparse
import os
from pathlib import Path

from benchmarks.machine import processor
from benchmarks.scale import control_plane, fairness, million, watching, workers


def main() -> None:
    """Parse the command line, and print what was measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    fair = commands.add_parser("fairness", help="a small job behind a large one")
    fair.add_argument("--records", type=int, default=1_000_000, help="records of the large job")
    cancel = commands.add_parser("cancel", help="accept, cancel, retry and delete a job of many chunks")
    cancel.add_argument("--chunks", type=int, default=100_000)
    many = commands.add_parser("workers", help="workers that only wait")
    many.add_argument("--workers", type=int, default=32)
    many.add_argument("--seconds", type=float, default=2.0, help="time of a chunk")
    large = commands.add_parser("million", help="short lines from a file to a directory")
    large.add_argument("--records", type=int, default=1_000_000)
    large.add_argument("--store", type=Path, help="directory of the payloads; default: a temporary one")
    watch = commands.add_parser("watching", help="what Redis spends on job events, Flower and metrics")
    watch.add_argument("--workers", type=int, default=32)
    watch.add_argument("--jobs", type=int, default=100)
    watch.add_argument("--seconds", type=float, default=120.0, help="time that is measured, with and without them")
    control = commands.add_parser("control", help="a short job, the cost of a chunk, and a list of many jobs")
    control.add_argument("--chunks", type=int, default=3000)
    control.add_argument("--jobs", type=int, default=10_000)
    chosen = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}", flush=True)
    if chosen.what == "fairness":
        print(fairness.measure(chosen.records))
    elif chosen.what == "cancel":
        print(fairness.measure_cancel(chosen.chunks))
    elif chosen.what == "workers":
        print(workers.measure(chosen.workers, chosen.seconds))
    elif chosen.what == "control":
        print(control_plane.measure(chosen.chunks, chosen.jobs))
    elif chosen.what == "watching":
        print(watching.measure(chosen.workers, chosen.jobs, chosen.seconds))
    else:
        print(million.measure(chosen.records, chosen.store))


if __name__ == "__main__":
    main()
