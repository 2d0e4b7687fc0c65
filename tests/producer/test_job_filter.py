"""Labels, and choosing jobs by name and label; forgetting jobs."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.jobs import JobSpec, new_job_id
from common.records import Counts
from common.redis.keys import JobKeys
from common.settings import Settings
from producer.client import Client
from producer.job_handle import JobHandle
from producer.queue_connection import QueueConnection
from tests.support.ledger_jobs import payloads
from tests.support.processes import RedisServer, Shell, Workers, wait_until


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "in.txt").write_text("x\ny\n")
    return str(tmp_path / "in.txt")


@pytest.fixture
def jobs(shell: Shell, source: str) -> list[str]:
    """Three jobs: `nightly-1` and `nightly-2` of run 7, `weekly` of run 8."""
    names = (("nightly-1", "7"), ("nightly-2", "7"), ("weekly", "8"))
    return [
        shell.submit("--task", "test-echo", source, "--name", name, "-l", f"run={run}", "-l", "owner=me")
        for name, run in names
    ]


def listed(shell: Shell, *arguments: str) -> list[str]:
    return [job["id"] for job in json.loads(shell.run("jobs", "--json", *arguments).stdout)]


def test_jobs_are_found_by_name_and_labels(shell: Shell, jobs: list[str]) -> None:
    first, second, third = jobs
    assert listed(shell, "-l", "run=7") == [second, first]
    assert listed(shell, "-l", "owner=me", "--label", "run=8", "--status", "queued") == [third]
    assert listed(shell, "--name", "nightly-*", "--limit", "1") == [second]
    assert listed(shell, "--name", "nightly-") == listed(shell, "-l", "run=") == []
    assert shell.status(third)["labels"] == {"run": "8", "owner": "me"}
    assert "run=8, owner=me" in shell.run("status", third).stdout


def test_chosen_jobs_are_cancelled_waited_for_and_deleted(shell: Shell, jobs: list[str], server: RedisServer) -> None:
    first, second, third = jobs
    shell.run("cancel", "-l", "run=7")
    assert [shell.status(job)["status"] for job in jobs] == ["cancelled", "cancelled", "queued"]
    told = json.loads(shell.run("wait", "--name", "nightly*", "--json", status=1).stdout)
    assert {job["id"] for job in told} == {first, second}
    refused = shell.run("delete", "-l", "owner=me", status=2)
    assert f"Job {third} is queued: cancel it first" in refused.stderr and refused.stderr.count(": deleted") == 2
    assert listed(shell) == [third]
    assert "There is no job with label run=7" in shell.run("delete", "-l", "run=7", status=1).stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["wait"], "either job ids"),
        (["delete", "0" * 12, "-l", "a=b"], "either job ids"),
        (["jobs", "-l", "run"], "expected KEY=VALUE"),
        (["jobs", "-l", "a b=1"], "a label's key"),
        (["jobs", "-l", "a=1", "-l", "a=2"], "given twice"),
        (["jobs", "-l", f"a={'x' * 257}"], "a label's value"),
    ],
)
def test_an_invalid_filter_is_refused(shell: Shell, arguments: list[str], reason: str) -> None:
    assert reason in shell.run(*arguments, status=2).stderr


def test_of_several_jobs_all_that_are_unknown_are_named(shell: Shell) -> None:
    said = shell.run("cancel", "0" * 12, "1" * 12, "2" * 12, status=1).stderr
    assert all(f"no job '{digit * 12}'" in said for digit in "012")


@pytest.mark.parametrize("labels", [["a"], {"a": 1}, {"": "x"}, {"a": "\x1b[31m"}, {str(n): "" for n in range(65)}])
def test_labels_that_nobody_checked_are_refused(labels: object) -> None:
    raw = json.loads(JobSpec(new_job_id(), "test-echo").encode()) | {"labels": labels}
    with pytest.raises(ValueError, match="label"):
        JobSpec.decode(json.dumps(raw))


def test_a_deleted_job_leaves_nothing_behind_and_nor_does_a_late_commit(server: RedisServer) -> None:
    connection = QueueConnection(Settings(broker_url=server.url))
    store, ledger, job = connection.store, connection.ledger, new_job_id()
    store.create(JobSpec(job, "test-echo", created_at=1.0))
    for chunk in range(3):
        payloads(store, job).add_records(chunk, b"x")
    ledger.accept(job, 3, 3)
    tickets = ledger.issue_tickets(job, 3)
    done, late = (ledger.lease(job, ticket, "w", 6) for ticket in tickets[:2])
    assert done and late
    ledger.commit(done, Counts(0, 1), {})
    ledger.refuse(job, "w", "no room")
    JobHandle(connection, connection.load_job(job)).delete(force=True)
    assert server.client.keys("*") == []
    assert ledger.renew(late) == "lost"
    payloads(store, job).write_outcomes(late.chunk, late.version, b"late")
    ledger.note_isolated(late, done=None, now=0, kept=0)
    assert ledger.commit(late, Counts(1), {}) == "closed"
    ledger.release_chunk(late)
    store.set_field(job, "stage", "late")
    assert ledger.lease(job, tickets[2], "w", 6) is None
    assert server.client.keys("*") == []


def test_a_running_job_is_deleted_by_force_and_its_worker_continues(
    shell: Shell, start_workers: Callable[..., Workers], server: RedisServer, source: str, tmp_path: Path
) -> None:
    start_workers()
    wait = ["--task", "test-wait", source, "-p", f"until={tmp_path / 'go'}", "--chunk-size", "1"]
    job = shell.submit(*wait)
    wait_until(lambda: shell.status(job)["status"] == "running", 60, "it runs")
    assert "is running: cancel it first" in shell.run("delete", job, status=2).stderr
    shell.run("delete", "--force", job)
    shell.run("submit", "--task", "test-echo", source, "--wait")
    (tmp_path / "go").touch()
    wait_until(lambda: not server.client.keys(f"{JobKeys.of(job).job}*"), 30, "nothing of it is left")
    assert "There is no job" in shell.run("status", job, status=1).stderr


def test_a_producer_whose_job_is_deleted_ends_and_leaves_nothing(shell: Shell, server: RedisServer) -> None:
    process = shell.popen("submit", "--task", "test-echo", "-", "--chunk-size", "1", stdin=-1)
    assert process.stdin
    process.stdin.write("x\ny\n")
    process.stdin.flush()
    connection = QueueConnection(Settings(broker_url=server.url))
    [job] = wait_until(connection.store.active, 60, "the job is there")
    wait_until(lambda: server.client.exists(JobKeys.of(job).input), 60, "a chunk is there")
    shell.run("delete", "--force", job)
    _, err = process.communicate("z\n", timeout=60)
    assert process.returncode == 1 and "it was abandoned or deleted" in err
    assert server.client.keys("hugqueue:*") == []


def test_the_newest_of_ten_thousand_jobs_are_listed_without_looking_at_all(server: RedisServer) -> None:
    with Client(server.url) as client:
        for number in range(0, 10_000, 500):
            with server.client.pipeline(transaction=False) as pipe:
                for at in range(number, number + 500):
                    spec = JobSpec(f"{at:012x}", "test-echo", name=f"job {at}", created_at=float(at + 1))
                    hash_ = {"spec": spec.encode(), "status": "queued", "round": 0, "ttl_ms": 1, "chunks": 1}
                    pipe.hset(JobKeys.of(spec.id).job, mapping=hash_)
                    pipe.zadd("hugqueue:jobs", {spec.id: spec.created_at})
                pipe.execute()
        server.client.config_resetstat()
        newest = client.jobs(limit=50)
        looked = server.client.info("commandstats")["cmdstat_hgetall"]["calls"]
        assert [job.state.spec.name for job in newest[:2]] == ["job 9999", "job 9998"]
        assert looked <= 200
        start = time.monotonic()
        assert [job.id for job in client.jobs(name="job 12")] == [f"{12:012x}"]
        assert time.monotonic() - start < 60
