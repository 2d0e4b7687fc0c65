"""Jobs for the faults: small chunks that take a moment, and the one question: has every record exactly one outcome?"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common.jobs import Job, JobSpec, new_job_id
from common.payloads.codec import encode_records
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Record
from common.redis.keys import JobKeys
from tests.support.processes import RedisServer, Shell, wait_until

#: Seconds to wait for anything, under a machine that is busy with other things.
LONG = 120.0


class Batch:
    """A job of numbered lines for `test-wait`, which notes what it runs."""

    def __init__(
        self, shell: Shell, server: RedisServer, directory: Path, records: int = 100, chunk: int = 10, **params: Any
    ) -> None:
        self.shell, self.records, self.chunk = shell, records, chunk
        self.store = JobStore(server.client, 100, lambda _: True)
        self.ledger = Ledger(server.client, 3)
        number = len(list(directory.glob("batch-*.txt")))
        self.source, self.log = directory / f"batch-{number}.txt", directory / f"batch-{number}.log"
        self.source.write_text("".join(f"line {number}\n" for number in range(records)))
        self.log.touch()
        self.params = {"seconds": 0.1, "log": self.log} | params
        self.id = ""

    def arguments(self) -> list[str]:
        options = [f"-p{key}={value}" for key, value in self.params.items()]
        return ["--task", "test-wait", str(self.source), "--chunk-size", str(self.chunk), *options]

    def submit(self) -> "Batch":
        self.id = self.shell.submit(*self.arguments())
        return self

    def accept(self) -> "Batch":
        """Make an accepted job without the command, at once; no ticket is sent."""
        params = {key: str(value) if isinstance(value, Path) else value for key, value in self.params.items()}
        spec = JobSpec(new_job_id(), "test-wait", params=params, created_at=time.time())
        self.store.create(spec)
        starts = range(0, self.records, self.chunk)
        for number, start in enumerate(starts):
            records = [Record(at, f"line {at}") for at in range(start, min(self.records, start + self.chunk))]
            self.store.payloads(spec).add_records(number, encode_records(records))
        self.ledger.accept(spec.id, len(starts), self.records)
        self.id = spec.id
        return self

    @property
    def job(self) -> Job:
        return self.store.job(self.id)

    def done(self) -> int:
        """Records that have an outcome."""
        return self.job.counts.done

    def leased(self) -> int:
        """How many chunks somebody works on."""
        return len(self.leased_chunks())

    def leased_chunks(self) -> set[bytes]:
        """The chunks that somebody works on."""
        return set(self.store.client.smembers(JobKeys.of(self.id).leased))

    def committed(self) -> set[bytes]:
        """The chunks that are done."""
        return set(self.store.client.hkeys(JobKeys.of(self.id).commits))

    def wait_for_records(self, count: int, seconds: float = LONG) -> None:
        wait_until(lambda: self.done() >= min(count, self.records), seconds, f"{count} records are done")

    def wait_for_more(self, seconds: float = LONG) -> None:
        """Wait until another record is done."""
        self.wait_for_records(self.done() + 1, seconds)

    def finish(self, seconds: float = LONG) -> None:
        """Wait for the end, then see that every record has exactly one outcome, in order."""
        wait_until(lambda: self.job.status.finished, seconds, f"job {self.id} is finished: {self.job}")
        self.check()

    def check(self) -> None:
        rows = self.shell.results(self.id)
        assert [row["id"] for row in rows] == list(range(self.records))
        assert [row["output"] for row in rows] == [f"LINE {number}" for number in range(self.records)]
        job = self.job
        assert job.status == "completed"
        assert (job.records, job.counts.succeeded, job.counts.failed) == (self.records, self.records, 0)
        assert self.commits() == [1] * (job.chunks or 0)

    def commits(self) -> list[int]:
        """How often each chunk was committed."""
        payloads = self.store.payloads(self.job.spec)
        return [len(payloads.versions(chunk)) for chunk in range(self.job.chunks or 0)]

    def runs(self) -> Counter[str]:
        """How often each record was run, be it in vain."""
        return Counter(self.log.read_text().splitlines())

    def runs_twice(self) -> int:
        """Records that were run more than once."""
        return sum(times > 1 for times in self.runs().values())


def failures(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return input -> code of the records that failed."""
    return {json.dumps(row["text"]): row["error_code"] for row in rows if "error_code" in row}
