"""The output that workers write, when they die or sleep between two of its steps: every part once and whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.jobs import JobSpec, JobStatus, Output, new_job_id
from common.payloads.backends import Version
from common.payloads.codec import encode_outcomes, encode_records
from common.payloads.job_payloads import JobPayloads
from common.payloads.output_committer import OutputCommitter
from common.queue.jobs import JobStore
from common.queue.ledger import Lease, Ledger
from common.queue.output_commit import commit_output, finish_commit
from common.records import Counts, Failure, Outcome, Record
from common.redis.keys import JobKeys
from tests.support.ledger_jobs import leased
from tests.support.processes import RedisServer, Shell, Workers, wait_until

BAD = Outcome(failure=Failure("test_failure", "not yet"))


class Written:
    """A job of chunks of one record whose output is written without a worker."""

    def __init__(self, server: RedisServer, directory: Path, chunks: int = 2, kind: str = "parts") -> None:
        self.store, self.ledger = JobStore(server.client, 100, lambda _: True), Ledger(server.client, 30)
        self.directory = directory
        output = Output(str(directory), "parquet") if kind == "parts" else None
        store = str(directory) if kind == "store" else None
        self.spec = JobSpec(new_job_id(), "test-echo", output=output, store=store)
        self.store.create(self.spec)
        for number in range(chunks):
            self.payloads.add_records(number, encode_records([Record(number, f"text {number}")]))
        self.ledger.accept(self.spec.id, chunks, chunks)

    @property
    def payloads(self) -> JobPayloads:
        return self.store.payloads(self.spec)

    @property
    def parts(self) -> OutputCommitter:
        parts = self.payloads.parts
        assert parts
        return parts

    def lease(self) -> Lease:
        return leased(self.ledger, self.spec.id)

    def put(self, held: Lease, outcome: Outcome) -> None:
        """Write outcomes aside."""
        self.payloads.write_outcomes(held.chunk, held.version, encode_outcomes([0], [held.chunk], [outcome], None))

    def commit(self, held: Lease, outcome: Outcome) -> None:
        """Write outcomes aside and commit them, no more: here a worker may die."""
        self.put(held, outcome)
        failed = int(outcome.failure is not None)
        assert self.ledger.commit(held, Counts(1 - failed, failed), {}) == "committed"

    def commit_output(self) -> bool:
        return commit_output(self.store, self.ledger, self.spec.id, self.payloads)

    def found(self) -> list[str | None]:
        names = sorted(self.directory.glob("part-*.parquet"))
        return [output for name in names for output in pq.read_table(name)["output"].to_pylist()]

    @property
    def status(self) -> JobStatus:
        return self.store.job(self.spec.id).status


@pytest.fixture
def written(server: RedisServer, tmp_path: Path) -> Written:
    return Written(server, tmp_path / "out")


def test_a_part_committed_but_not_renamed_is_renamed_later(written: Written) -> None:
    for number in range(2):
        written.commit(written.lease(), Outcome(f"output {number}"))
    assert (written.status, written.found()) == (JobStatus.RUNNING, [])
    assert written.commit_output()
    assert (written.status, written.found()) == (JobStatus.COMPLETED, ["output 0", "output 1"])
    assert not (written.directory / "_attempts").exists()
    assert not written.commit_output()


def test_outcomes_are_read_wherever_their_part_is(written: Written) -> None:
    first, second = written.lease(), written.lease()
    written.commit(first, Outcome("aside"))
    written.commit(second, Outcome("placed"))
    written.parts.commit_part(second.chunk, second.version)
    assert len(written.payloads.outcomes(first.chunk)) == len(written.payloads.outcomes(second.chunk)) == 1
    written.ledger.fail(written.spec.id, Failure("test", "ended before it was whole"))
    assert len(written.payloads.outcomes(first.chunk)) == 1


def test_a_worker_that_slept_through_a_retry_removes_and_reports_nothing(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        written.commit(written.lease(), BAD)
    read_uncommitted = written.ledger.uncommitted_output

    def sleep(job_id: str) -> dict[int, list[Version]]:
        """What the one that slept knows, and what happens meanwhile."""
        known = read_uncommitted(job_id)
        monkeypatch.undo()
        assert written.commit_output()
        written.ledger.retry(job_id)
        written.commit(written.lease(), Outcome("at last"))
        return known

    monkeypatch.setattr(written.ledger, "uncommitted_output", sleep)
    assert not written.commit_output()
    assert not (written.directory / "_SUCCESS").exists(), "it is being written again"
    written.commit(written.lease(), Outcome("at last"))
    assert written.commit_output()
    assert written.found() == ["at last", "at last"]


def test_a_late_attempt_of_a_retry_leaves_a_whole_output_as_it_is(server: RedisServer, tmp_path: Path) -> None:
    written = Written(server, tmp_path / "out", chunks=1)
    written.commit(written.lease(), BAD)
    assert written.commit_output()
    written.ledger.retry(written.spec.id)
    held = written.lease()
    written.commit(held, Outcome("done"))
    assert written.commit_output() and written.status is JobStatus.COMPLETED
    written.put(replace(held, number=held.number + 1), Outcome("late"))
    assert sorted(path.name for path in written.directory.iterdir()) == [
        "_SUCCESS",
        "_manifest.json",
        "part-00000.parquet",
    ]


def test_a_job_deleted_while_its_part_is_renamed_causes_no_error(written: Written) -> None:
    held = written.lease()
    written.commit(held, Outcome("output"))
    written.store.delete(written.spec.id)
    finish_commit(written.store, written.ledger, written.payloads, held)


def test_a_worker_that_may_not_open_the_output_leaves_its_end_to_another(
    server: RedisServer, shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path
) -> None:
    reaping = start_workers()
    written = Written(server, tmp_path / "out")
    for number in range(2):
        written.commit(written.lease(), Outcome(f"output {number}"))
    wait_until(lambda: "cannot be finished here" in reaping.text(), 60, "the one that reaps says so")
    assert "HUGQUEUE_SHARED" in shell.status(written.spec.id)["stage"]
    start_workers(HUGQUEUE_SHARED=str(tmp_path))
    shell.run("wait", written.spec.id)
    assert written.found() == ["output 0", "output 1"]
    manifest = json.loads((written.directory / "_manifest.json").read_text())
    assert [part["failed"] for part in manifest["parts"]] == [0, 0]


def test_a_job_cancelled_in_its_last_commit_is_completed_with_its_output(written: Written) -> None:
    written.commit(written.lease(), Outcome("output 0"))
    held = written.lease()
    assert written.ledger.cancel(written.spec.id) == "cancelling"
    written.commit(held, Outcome("output 1"))
    assert written.commit_output()
    assert (written.status, written.found()) == (JobStatus.COMPLETED, ["output 0", "output 1"])


def test_a_job_cancelled_while_its_output_was_blocked_is_ended_by_a_retry(written: Written) -> None:
    for number in range(2):
        written.commit(written.lease(), Outcome(f"output {number}"))
    assert written.ledger.cancel(written.spec.id) == "cancelled", "it can be stopped"
    assert not written.commit_output()
    assert written.ledger.retry(written.spec.id) == 0
    assert (written.status, written.store.job(written.spec.id).round) == (JobStatus.RUNNING, 0)
    assert written.commit_output()
    assert (written.status, (written.directory / "_SUCCESS").exists()) == (JobStatus.COMPLETED, True)


def lose_first(written: Written, kind: str) -> None:
    """Remove the outcomes of chunk 0."""
    if kind == "redis":
        written.store.client.hdel(JobKeys.of(written.spec.id).output, "0:0:1")
    for path in written.directory.rglob("*0.0.1.parquet" if kind == "parts" else "0-0-1.arrow"):
        path.unlink()


@pytest.mark.parametrize("kind", ["parts", "store", "redis"])
def test_outcomes_that_are_lost_in_mid_job_fail_it_at_its_end(server: RedisServer, tmp_path: Path, kind: str) -> None:
    written = Written(server, tmp_path / "out", kind=kind)
    written.commit(written.lease(), BAD)
    lose_first(written, kind)
    written.commit(written.lease(), Outcome("there"))
    assert not written.commit_output()
    job = written.store.job(written.spec.id)
    assert job.status is JobStatus.FAILED
    assert job.failure and job.failure.code == "results_lost"
    lost = written.payloads.lost(written.ledger.committed(written.spec.id))
    assert written.ledger.retry(written.spec.id, lambda: lost) == 1
    held = written.lease()
    assert held.chunk == 0
    written.commit(held, Outcome("again"))
    assert written.commit_output() is (kind != "redis")
    job = written.store.job(written.spec.id)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(2, 0))


@pytest.mark.parametrize("kind", ["parts", "store", "redis"])
def test_a_job_that_loses_its_list_of_commits_is_completed(server: RedisServer, tmp_path: Path, kind: str) -> None:
    written = Written(server, tmp_path / "out", chunks=3, kind=kind)
    for number in range(2):
        written.commit(written.lease(), Outcome(f"output {number}"))
    server.client.delete(JobKeys.of(written.spec.id).commit_history)
    written.commit(written.lease(), Outcome("output 2"))
    assert written.commit_output() is (kind != "redis")
    assert written.status is JobStatus.COMPLETED
    assert all(written.payloads.outcomes(number) for number in range(3))
    assert server.client.pttl(JobKeys.of(written.spec.id).commit_history) > 0


@pytest.mark.parametrize("kind", ["parts", "store", "redis"])
def test_commits_of_several_rounds_that_are_lost_fail_the_job(server: RedisServer, tmp_path: Path, kind: str) -> None:
    written = Written(server, tmp_path / "out", chunks=3, kind=kind)
    for outcome in (BAD, BAD, Outcome("output 2")):
        written.commit(written.lease(), outcome)
    written.commit_output()
    written.ledger.retry(written.spec.id)
    written.commit(written.lease(), Outcome("output 0"))
    held = written.lease()
    server.client.delete(JobKeys.of(written.spec.id).commit_history)
    written.put(held, Outcome("output 1"))
    assert written.ledger.commit(held, Counts(1, 0), {}) == "stale", "there may have been other records in the chunk"
    written.commit(written.lease(), Outcome("output 1"))
    assert not written.commit_output()
    job = written.store.job(written.spec.id)
    assert job.failure and job.failure.code == "results_lost"


def test_a_retry_of_failures_whose_commits_are_lost_counts_them_once(server: RedisServer, tmp_path: Path) -> None:
    written = Written(server, tmp_path / "out", kind="store")
    for outcome in (BAD, Outcome("output 1")):
        written.commit(written.lease(), outcome)
    assert written.commit_output()
    server.client.delete(JobKeys.of(written.spec.id).commit_history)
    payloads, ledger = written.payloads, written.ledger
    assert ledger.retry(written.spec.id, lambda: payloads.lost(ledger.committed(written.spec.id))) == 1
    written.commit(written.lease(), Outcome("output 0"))
    assert written.commit_output()
    assert written.store.job(written.spec.id).counts == Counts(2, 0)


@pytest.mark.parametrize("forged", [b"a:b", b"\xff"])
def test_a_broken_list_of_commits_stops_no_reaper(
    server: RedisServer, shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path, forged: bytes
) -> None:
    written = Written(server, tmp_path / "out")
    for _ in range(2):
        written.commit(written.lease(), Outcome("output"))
    server.client.hset(JobKeys.of(written.spec.id).commit_history, "0", forged)
    workers = start_workers(HUGQUEUE_SHARED=str(tmp_path))
    wait_until(lambda: "cannot be inspected" in workers.text(), 30, "it is logged")
    assert "Traceback" not in workers.text()
    (tmp_path / "in.txt").write_text("a\n")
    shell.run("submit", "--task", "test-echo", "in.txt", "--wait")
