"""Nothing is tried for ever: too many errors, faults that do not pass, chunks over which whole workers die."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.queue.jobs import JobStore
from common.redis.keys import JobKeys
from tests.support.fault_jobs import LONG
from tests.support.processes import RedisServer, Shell, Workers, lines, wait_until
from workers.celery_worker.process_chunk import MAX_ATTEMPTS, MAX_TRIES

StartWorkers = Callable[..., Workers]


@pytest.fixture
def store(server: RedisServer) -> JobStore:
    return JobStore(server.client, result_ttl=100)


def test_a_job_with_too_many_errors_ends_early_and_keeps_what_is_done(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    start_workers()
    source = tmp_path / "in.txt"
    source.write_text("good\nbad\n" * 50)
    submit = ("submit", "--task", "test-echo", str(source), "-p", "fail=bad", "--chunk-size", "2", "--wait")
    for limit, allowed in {"3": 3, "5%": 5}.items():
        ended = shell.run(*submit, "--max-errors", limit, status=1)
        rows = lines(ended.stdout)
        failed = [row for row in rows if row.get("error_code") == "test_failure"]
        assert "failed: too_many_errors" in ended.stderr
        assert allowed < len(failed) <= allowed + 3, "three chunks run at once"
        assert sum("output" in row for row in rows) == len(failed) == len(rows) / 2
    completed = lines(shell.run(*submit, "--max-errors", "50%", status=3).stdout)
    assert sum("output" in row for row in completed) == 50


@pytest.mark.parametrize("limit", ["-1", "110%", ""])
def test_a_limit_that_is_none_is_refused(shell: Shell, tmp_path: Path, limit: str) -> None:
    source = tmp_path / "in.txt"
    source.write_text("text\n")
    done = shell.run("submit", "--task", "fill-mask", str(source), "--max-errors", limit, status=2)
    assert "--max-errors" in done.stderr


def test_a_chunk_that_never_ends_fails_its_job(
    shell: Shell, start_workers: StartWorkers, store: JobStore, tmp_path: Path
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("text\n")
    job = shell.submit("--task", "test-echo", str(source))
    store.client.hset(JobKeys.of(job).attempts, "0", MAX_ATTEMPTS)
    start_workers()
    wait_until(lambda: store.job(job).status.finished, LONG, "the job ends")
    status = shell.status(job)
    assert (status["status"], status["error"]["code"]) == ("failed", "chunk_keeps_failing")


def test_a_fault_that_passes_is_waited_for(
    shell: Shell, start_workers: StartWorkers, store: JobStore, tmp_path: Path
) -> None:
    trouble, source = tmp_path / "trouble", tmp_path / "in.txt"
    trouble.touch()
    source.write_text("text\n")
    workers = start_workers()
    job = shell.submit("--task", "test-load", str(source), "-p", f"load_trouble={trouble}")
    wait_until(lambda: workers.text().count("to be retried") >= 2, LONG, "two tries")
    trouble.unlink()
    wait_until(lambda: store.job(job).status.finished, LONG, "the job ends")
    assert [row["output"] for row in shell.results(job)] == ["TEXT"]


def test_a_fault_that_does_not_pass_fails_the_job_with_its_code(
    shell: Shell, start_workers: StartWorkers, store: JobStore, tmp_path: Path
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("text\n")
    job = shell.submit("--task", "test-load", str(source), "-p", f"load_trouble={source}")
    store.client.hset(JobKeys.of(job).attempts, "0:retries", MAX_TRIES - 1)
    start_workers()
    wait_until(lambda: store.job(job).status.finished, LONG, "the job ends")
    assert shell.status(job)["error"] == {
        "code": "hub_unavailable",
        "message": "asked to have trouble (After 10 tries.)",
    }
