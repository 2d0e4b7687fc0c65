"""The ledger under random steps (leases that end, retries, cancels, lost keys): no record is lost or counted twice."""

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from common.errors import UsageError
from common.jobs import JobSpec, JobStatus, new_job_id
from common.payloads.chunk_rows import chunk_rows
from common.payloads.codec import decode_records, encode_outcomes, encode_records, positions_to_retry
from common.queue.jobs import JobStore
from common.queue.ledger import Lease, Ledger
from common.records import Counts, Failure, Outcome, Record
from common.redis.keys import JobKeys
from tests.support.ledger_jobs import lease, look, make_job, run_all
from tests.support.processes import RedisServer

IN_CHUNK = 3
BAD = Outcome(failure=Failure("test_failure", "not yet"))
#: Keys that may be deleted of a running job or a finished one, each of a group in any order.
KEYS = {"lists": ("open", "commits", "leased", "delayed", "tickets"), "commit_history": ("commit_history",)}


class Played:
    """A job, and workers that do what chance says."""

    def __init__(self, store: JobStore, ledger: Ledger, chance: random.Random) -> None:
        self.store, self.ledger, self.chance = store, ledger, chance
        self.chunks = chance.randint(1, 6)
        self.first = make_job(store, ledger, 1) if chance.random() < 0.5 else None  #: which the job waits for
        self.spec = JobSpec(new_job_id(), "test-echo", after=(self.first,) if self.first else ())
        self.id, self.keys = self.spec.id, JobKeys.of(self.spec.id)
        self.payloads = store.payloads(self.spec)
        store.create(self.spec)
        for chunk in range(self.chunks):
            self.payloads.add_records(chunk, encode_records([Record(n, f"text {n}") for n in range(IN_CHUNK)]))
        ledger.accept(self.id, self.chunks, self.chunks * IN_CHUNK)
        self.leases: list[tuple[Lease, list[int]]] = []

    @property
    def status(self) -> JobStatus:
        return self.store.job(self.id).status

    def lease(self) -> bool:
        """Take a chunk, as a turn does: of one that has lost its outcomes all records run again."""
        blocked = self.status is JobStatus.BLOCKED
        held = lease(self.ledger, self.id)
        if held is None:
            return False
        assert not blocked
        found = self.payloads.outcomes(held.chunk) if held.round else []
        earlier = [payload for payload in found if payload is not None]
        if len(earlier) < len(found):
            self.ledger.forget_commits(self.id, held.round, [held.chunk])
            earlier = []
        self.leases.append((held, positions_to_retry(earlier) if earlier else list(range(IN_CHUNK))))
        return True

    def commit(self, share: float = 0.3) -> None:
        """Commit one of the leased chunks, with the given number of failed records."""
        held, positions = self._put_down()
        outcomes = [BAD if self.chance.random() < share else Outcome("done") for _ in positions]
        failed = outcomes.count(BAD)
        self.payloads.write_outcomes(held.chunk, held.version, encode_outcomes(positions, positions, outcomes, None))
        answer = self.ledger.commit(held, Counts(len(positions) - failed, failed), {})
        if answer != "committed" and held.version not in self.payloads.versions(held.chunk):
            self.payloads.delete_outcomes(held.chunk, held.version)

    def release_chunk(self) -> None:
        self.ledger.release_chunk(self._put_down()[0], delay=self.chance.choice([None, 0.0]))

    def renew(self) -> None:
        self.ledger.renew(self.chance.choice(self.leases)[0])

    def expire(self) -> None:
        self.store.client.delete(self.keys.lease(self.chance.choice(self.leases)[0].chunk))

    def look(self) -> None:
        look(self.ledger, self.id)

    def retry(self) -> None:
        try:
            self.ledger.retry(self.id, lambda: self.payloads.lost(self.ledger.committed(self.id)))
        except UsageError as error:
            assert not self.status.finished or "before the job that it waits for" in str(error)

    def cancel(self) -> None:
        self.ledger.cancel(self.id)

    def lose_key(self, names: Sequence[str]) -> None:
        self.store.client.delete(getattr(self.keys, self.chance.choice(names)))
        self.look()

    def lose_outcome(self) -> None:
        if names := self.store.client.hkeys(self.keys.output):
            self.store.client.hdel(self.keys.output, self.chance.choice(sorted(names)))

    def end_first(self) -> None:
        """End the job that this one waits for, or retry it if it has ended."""
        if not self.first:
            return
        if self.store.job(self.first).status.finished:
            self.ledger.retry(self.first)
            return
        fail = partial(self.ledger.fail, self.first, Failure("test_failure", "by chance"))
        self.chance.choice([partial(run_all, self.ledger, self.first), partial(self.ledger.cancel, self.first), fail])()

    def complete_first(self) -> None:
        while self.first and self.store.job(self.first).status is not JobStatus.COMPLETED:
            if self.store.job(self.first).status.finished:
                self.ledger.retry(self.first)
            run_all(self.ledger, self.first)

    def end(self) -> None:
        """Do what is left, and retry until no record has failed."""
        self.complete_first()
        for _ in range(20):
            while self.leases:
                self.commit(0)
            for chunk in self.store.client.smembers(self.keys.leased):
                self.store.client.delete(self.keys.lease(int(chunk)))
            self.look()
            while self.lease():
                pass
            if self.status.finished:
                self.retry()

    def _put_down(self) -> tuple[Lease, list[int]]:
        return self.leases.pop(self.chance.randrange(len(self.leases)))


@pytest.mark.parametrize("losing", ["nothing", *KEYS, "outcomes"])
def test_every_record_has_one_outcome_in_the_end(
    losing: str, store: JobStore, ledger: Ledger, server: RedisServer
) -> None:
    for seed in range(20):
        played = Played(store, ledger, random.Random(seed))
        always: list[Callable[[], object]] = [*[played.lease] * 4, played.look, played.retry, played.end_first]
        if losing in KEYS:
            always.append(partial(played.lose_key, KEYS[losing]))
        elif losing == "outcomes":
            always.append(played.lose_outcome)
        holding: list[Callable[[], object]] = [*[played.commit] * 4, played.release_chunk, played.renew, played.expire]
        for _ in range(played.chance.randint(5, 40)):
            played.chance.choice(always + holding if played.leases else always)()
            if played.chance.random() < 0.02:
                played.cancel()
        played.end()
        job = store.job(played.id)
        counted = (job.status, job.counts)
        assert counted == (JobStatus.COMPLETED, Counts(played.chunks * IN_CHUNK, 0)), f"seed {seed}"
        for chunk in range(played.chunks):
            records = decode_records(played.payloads.records(chunk) or b"")
            rows = chunk_rows(records, played.payloads.outcomes(chunk))
            assert [row.output for row in rows] == ["done"] * IN_CHUNK, f"seed {seed}"
        keys = (key for job_id in (played.id, *played.spec.after) for key in server.client.keys(f"*:job:{job_id}*"))
        kept = [key for key in keys if server.client.ttl(key) < 0]
        assert not kept, f"seed {seed}"
