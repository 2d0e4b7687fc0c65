"""Jobs in Flower: one row for each, asked of Flower's API while the job waits, runs and ends."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.jobs import new_job_id
from common.redis import keys
from tests.support.flower_process import flower, get
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]


@pytest.fixture
def address(environ: dict[str, str], tmp_path: Path, start_workers: StartWorkers) -> Iterator[str]:
    """Flower on a queue with one worker."""
    with flower(environ, tmp_path / "flower.log") as running:
        start_workers()
        yield running


def row_of(address: str, job: str) -> dict[str, Any]:
    return json.loads(get(f"{address}/api/tasks?taskname=hugqueue.job") or "{}").get(job, {})


def wait_for_row(address: str, job: str, *words: str, seconds: float = 20) -> dict[str, Any]:
    """Return the row of a job once its state and result hold all these words."""

    def look() -> dict[str, Any]:
        row = row_of(address, job)
        return row if all(word in f"{row.get('state')} {row.get('result')}" for word in words) else {}

    return wait_until(look, seconds, f"{words} in the row of {job}, found {row_of(address, job)}")


def test_a_job_is_one_row_from_its_submit_to_its_end(
    address: str, shell: Shell, environ: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    params = ("-p", f"until={go}", "-p", "until_text=last", "-p", "fail=broken", "--chunk-size", "4", "--name", "mine")
    with shell.popen("submit", "--task", "test-wait", *params, "-", stdin=-1) as producer:
        assert producer.stdin and producer.stdout
        producer.stdin.write("a\nbroken\nc\nd\n" * 3)
        producer.stdin.flush()
        [job] = wait_until(lambda: [job["id"] for job in json.loads(shell.run("jobs", "--json").stdout)], 20)
        row = wait_for_row(address, job, "SUBMITTING")
        assert row["args"] == f"job {job} 'mine' · test-wait" and row["received"] and not row["started"]
        producer.stdin.write("w\nx\ny\nlast\n")
        producer.stdin.close()
        assert producer.stdout.read().strip() == job
    row = wait_for_row(address, job, "PROGRESS", "75 % · 12 of 16 · ", " records/s · ", " left · 3 failed")
    assert row["started"] and row["worker"] == "jobs@hugqueue"
    with flower(environ, tmp_path / "later.log") as later:
        found = wait_for_row(later, job, "PROGRESS", "75 %", seconds=10)
    assert [found[key] for key in ("args", "received", "started")] == [row[k] for k in ("args", "received", "started")]
    go.touch()
    row = wait_for_row(address, job, "SUCCESS", "13 of 16 succeeded · 3 failed · in ")
    assert row["runtime"] > 0 and row["succeeded"] and row["retries"] == 0
    shell.run("retry", job)
    row = wait_for_row(address, job, "SUCCESS", "13 of 16 succeeded · 3 failed · in ")
    wait_until(lambda: row_of(address, job)["retries"] == 1, 20, "the end of the second round")
    rows = json.loads(get(f"{address}/api/tasks"))
    assert sum(row["name"] == "hugqueue.job" for row in rows.values()) == 1
    assert {row["name"] for row in rows.values()} == {"hugqueue.job", "hugqueue.test-wait"}


def test_cancelled_failed_and_waiting_jobs_show_it(address: str, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x\n" * 8)
    waits = shell.submit("--task", "test-echo", "in.txt", "--device", "gpu")
    runs = shell.submit("--task", "test-wait", "in.txt", "--chunk-size", "2", "-p", f"until={tmp_path / 'never'}")
    fails = shell.submit("--task", "test-echo", "in.txt", "-p", "fail=x", "--max-errors", "3", "--chunk-size", "8")
    assert not wait_for_row(address, waits, "QUEUED 0 % · 0 of 8")["started"]
    wait_for_row(address, runs, "PROGRESS 0 % · 0 of 8")
    shell.run("cancel", runs)
    shell.run("cancel", waits)
    row = wait_for_row(address, runs, "REVOKED cancelled · 0 of 8 done")
    assert row["revoked"] and not row["retried"]
    assert wait_for_row(address, waits, "REVOKED cancelled · 0 of 8 done")["runtime"] is None
    row = wait_for_row(address, fails, "FAILURE too_many_errors: ")
    assert row["exception"] == row["result"] and row["result"].count("8 of 8 done · 8 failed · in ") == 1


def test_what_ended_while_no_worker_lived_is_told_by_the_next_one(
    server: RedisServer, environ: dict[str, str], shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("x\n")
    with flower(environ, tmp_path / "flower.log") as address:
        workers = start_workers()
        cancelled, deleted = (shell.submit("--task", "test-echo", "in.txt", "--device", "gpu") for _ in range(2))
        for job in (cancelled, deleted):
            wait_for_row(address, job, "QUEUED")
        shell.run("delete", "--force", deleted)
        wait_for_row(address, deleted, "REVOKED deleted")
        workers.kill()
        shell.run("cancel", cancelled)
        server.client.sadd(keys.SHOWN, "not a job", new_job_id())
        assert row_of(address, cancelled)["state"] == "QUEUED"
        start_workers()
        wait_for_row(address, cancelled, "REVOKED cancelled · 0 of 1 done")
    wait_until(lambda: not server.client.exists(keys.SHOWN), 20, "all ends are told")
