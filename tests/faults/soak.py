"""The soak: two workers, one of them killed at random moments, small jobs submitted all the while.

`python -m tests.faults.soak --minutes 15` prints how many jobs, records and kills there were, how many records ran more
than once (allowed), and how many have no outcome, two, or a wrong one (not allowed). Times are the defaults of
the product: nothing is shortened.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from common.heartbeats import living
from tests.processes import RedisServer, Shell, Workers, environment, wait_until


@dataclass(slots=True)
class Tally:
    """What happened."""

    jobs: dict[str, list[str]] = field(default_factory=dict)  #: id -> the texts that were submitted
    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  #: resident bytes of all processes of the workers, every kill


def soak(minutes: float, between_kills: float, directory: Path, seed: int = 1) -> Tally:
    """Return the tally of `minutes` of submitting and killing, all jobs having ended."""
    rng = random.Random(seed)
    server = RedisServer(directory / "redis").start()
    environ = environment(directory, server.url)
    shell = Shell(environ, directory)
    workers = [Workers(environ, directory / f"workers{number}.log").start() for number in range(2)]
    tally = Tally()
    try:
        wait_until(lambda: len(living(server.client)) == 2, 60, "two workers")
        end, kill_at = time.monotonic() + minutes * 60, time.monotonic() + between_kills
        while time.monotonic() < end:
            submit(shell, directory, tally, rng)
            if time.monotonic() > kill_at:
                kill_one(workers, tally, rng)
                kill_at = time.monotonic() + between_kills
        for job in tally.jobs:
            shell.run("wait", job, seconds=600)
        check(shell, tally)
    finally:
        for one in workers:
            one.kill()
        server.kill()
    return tally


def submit(shell: Shell, directory: Path, tally: Tally, rng: random.Random) -> None:
    """Submit a job of some tens to hundreds of records, each with a text of its own and of another length."""
    number = len(tally.jobs)
    texts = [f"job {number} record {at} {'x' * rng.randrange(200)}" for at in range(rng.randrange(20, 300))]
    source = directory / "in.txt"
    source.write_text("".join(f"{text}\n" for text in texts))
    options = ["-p", f"seconds={rng.choice([0, 0.1, 0.5])}", "-p", f"log={directory / 'ran.log'}"]
    job = shell.submit("--task", "test-wait", str(source), *options, "--chunk-size", str(rng.choice([10, 25, 100])))
    tally.jobs[job] = texts


def kill_one(workers: list[Workers], tally: Tally, rng: random.Random) -> None:
    """SIGKILL one process of one worker, or all of it; a supervisor that is gone is started again, as an init would."""
    victim = rng.choice(workers)
    tally.memory.append(sum(memory_of(one) for one in workers))
    what = rng.choice(["device process", "Celery process", "everything"])
    tally.kills[what] += 1
    if what == "everything":
        victim.kill()
        victim.start()
        return
    process = victim.device() if what == "device process" else victim.celery()
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        pass  # it was being started again after the last kill


def memory_of(workers: Workers) -> int:
    """Return the resident memory of the workers' processes, in bytes."""
    total = 0
    for process in workers.processes():
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def check(shell: Shell, tally: Tally) -> None:
    """Compare every job's results with what was submitted."""
    for job, texts in tally.jobs.items():
        rows = shell.results(job)
        found = [(row["id"], row["input"], row.get("output")) for row in rows]
        expected = [(at, text, text.upper()) for at, text in enumerate(texts)]
        if found != expected:
            tally.wrong.append(job)


def report(tally: Tally, directory: Path, minutes: float) -> Mapping[str, object]:
    """Return the figures."""
    ran = Counter((directory / "ran.log").read_text().splitlines())
    records = sum(map(len, tally.jobs.values()))
    return {
        "minutes": minutes,
        "jobs": len(tally.jobs),
        "records": records,
        "kills": dict(tally.kills),
        "records run more than once": sum(times > 1 for times in ran.values()),
        "records never run": records - len(ran),
        "jobs with a lost, doubled or wrong outcome": len(tally.wrong),
        "resident MB at first and at last": [round(tally.memory[at] / 1e6) for at in (0, -1)] if tally.memory else [],
    }


def main() -> int:
    """Run the soak; the exit status is 1 if any outcome is lost, doubled or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--between-kills", type=float, default=20, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hugqueue-soak-") as name:
        tally = soak(options.minutes, options.between_kills, Path(name))
        print(json.dumps(report(tally, Path(name), options.minutes), indent=2))
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
