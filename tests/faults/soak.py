"""A soak: two workers, one of them killed at random again and again, small jobs submitted all the while.

    python -m tests.faults.soak --minutes 15 --kill-every 20

Everything has its defaults: leases of 30 s, an append-only file synced every second. In the end every record of every
job must have exactly one outcome. Prints the figures, and exits with 1 if a record was lost or counted twice.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from common.inputs.sources import ReadProgress
from common.jobs import JobSpec, new_job_id
from common.records import Record
from common.settings import Settings
from producer.job_handle import JobHandle
from producer.queue_connection import QueueConnection
from producer.submit.chunk_source import ChunkSource
from producer.submit.chunking import ChunkPlan
from producer.submit.idempotent import submit_idempotently
from tests.support.processes import PLUGINS, RedisServer, Workers, environment, wait_until

#: Jobs that are under way at once.
AT_ONCE = 8
#: Seconds after which the last jobs must have ended.
PATIENCE = 300.0


@dataclass
class Figures:
    """What came of it."""

    minutes: float = 0.0
    jobs: int = 0
    records: int = 0
    kills: int = 0
    losses: int = 0  #: records without an outcome, or with that of another
    duplicates: int = 0  #: records whose chunk was committed more than once
    run_again: int = (
        0  #: records that ran to their end more than once, since a worker died before it was noted: no harm
    )


class Soak:
    """Submits jobs and kills workers, then counts."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.figures = Figures()
        self._directory, self._log = directory, directory / "ran.log"
        self._dice = random.Random(seed)
        self._server = RedisServer(directory / "redis", "--appendfsync", "everysec").start()
        self._client = QueueConnection(Settings(broker_url=self._server.url))
        self._jobs: list[tuple[JobSpec, int]] = []
        self._workers = [self._start(number) for number in range(2)]

    def _start(self, number: int) -> Workers:
        environ = environment(self._directory, self._server.url)
        return Workers(environ, self._directory / f"workers{number}.log").start()

    def run(self, seconds: float, kill_every: float) -> Figures:
        """Return the figures after `seconds`."""
        start = time.monotonic()
        next_kill = start + kill_every
        while time.monotonic() < start + seconds:
            if time.monotonic() > next_kill:
                self._kill()
                next_kill += kill_every
            if self._unfinished() < AT_ONCE:
                self._submit()
            time.sleep(0.1)
        wait_until(lambda: not self._unfinished(), PATIENCE, "all jobs are finished")
        self.figures.minutes = round((time.monotonic() - start) / 60, 1)
        self._count()
        return self.figures

    def stop(self) -> None:
        """End all processes."""
        for workers in self._workers:
            workers.kill()
        self._server.kill()

    def _unfinished(self) -> int:
        return len(self._client.store.active())

    def _submit(self) -> None:
        records, number = self._dice.randint(1, 200), len(self._jobs)
        params = {"seconds": self._dice.uniform(0.0, 0.4), "log": str(self._log)}
        spec = JobSpec(new_job_id(), "test-wait", params=params, created_at=time.time())
        texts = (Record(n, f"job {number} line {n}") for n in range(records))
        submit_idempotently(
            self._client,
            spec,
            None,
            ChunkSource.of_records(texts, ChunkPlan(self._dice.choice([5, 20, 50])), ReadProgress()),
            lambda _: None,
            self._client.notify,
        )
        self._jobs.append((spec, records))

    def _kill(self) -> None:
        """Kill a worker whole, or one of its two processes, at a random moment."""
        time.sleep(self._dice.uniform(0.0, 2.0))
        number = self._dice.randrange(2)
        workers, part = self._workers[number], self._dice.choice(["all", "all", "celery", "device"])
        self.figures.kills += 1
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} killing {part} of worker {number}; {len(self._jobs)} jobs\n")
        if part == "all":
            workers.kill()
            self._workers[number] = self._start(number)
            return
        try:
            (workers.celery() if part == "celery" else workers.device()).kill()
        except psutil.NoSuchProcess:
            self.figures.kills -= 1  # it died by itself in that instant, with its other half

    def _count(self) -> None:
        self.figures.jobs = len(self._jobs)
        for number, (spec, records) in enumerate(self._jobs):
            self.figures.records += records
            job = self._client.load_job(spec.id)
            rows = list(JobHandle(self._client, job).rows())
            right = [row.outcome is not None and row.outcome.output == f"JOB {number} LINE {row.id}" for row in rows]
            self.figures.losses += records - sum(right)
            layers = [len(self._client.store.payloads(spec).versions(chunk)) for chunk in range(job.chunks or 0)]
            per_chunk = -(-records // max(1, len(layers)))
            self.figures.duplicates += sum(per_chunk for commits in layers if commits > 1)
            self.figures.duplicates += abs(job.counts.done - records)
        ran = Counter(self._log.read_text().splitlines())
        self.figures.run_again = sum(times > 1 for times in ran.values())


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--kill-every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(PLUGINS))
    with tempfile.TemporaryDirectory(prefix="hugqueue-soak-") as directory:
        soak = Soak(Path(directory), options.seed)
        try:
            figures = soak.run(options.minutes * 60, options.kill_every)
        finally:
            soak.stop()
    sys.stdout.write(f"{json.dumps(asdict(figures))}\n")
    sys.exit(bool(figures.losses or figures.duplicates))


if __name__ == "__main__":
    main()
