"""Jobs through a real Redis and real workers, by the command line."""

import json
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.cli_processes import Queue
from tests.support.processes import DEMO_MODEL, RedisServer, Shell, Workers, lines, wait_until

StartWorkers = Callable[..., Workers]


def write_lines(path: Path, count: int) -> Path:
    path.write_text("".join(f"line {number}\n" for number in range(count)))
    return path


def test_a_file_comes_back_complete_and_in_order_and_what_ran_is_recorded(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    start_workers("--preload", f"fill-mask={DEMO_MODEL}", "--dtype", "bfloat16")
    capitals = ["France", "Germany", "Italy", "Spain", "Egypt", "Japan"]
    source = tmp_path / "capitals.txt"
    source.write_text("".join(f"The capital of {name} is [MASK].\n" for name in capitals * 50))
    output = tmp_path / "out.jsonl"
    shell.run("submit", "--task", "fill-mask", str(source), "-m", str(DEMO_MODEL), "-o", str(output))
    rows = lines(output.read_text())
    assert [row["id"] for row in rows] == list(range(300))
    assert [row["text"] for row in rows] == source.read_text().splitlines()
    words = [row["output"][0]["token_str"] for row in rows]
    assert words == ["paris", "berlin", "rome", "madrid", "cairo", "tokyo"] * 50
    (job,) = json.loads(shell.run("jobs", "--json").stdout)
    ran_on = shell.status(job["id"])["ran_on"]
    versions = {name: version(name) for name in ("torch", "transformers")}
    expected = {
        "device": "cpu",
        "dtype": "bfloat16",
        "attention": "hugqueue_varlen",
        "commit": None,
        "versions": versions,
    }
    assert ran_on | expected == ran_on


def test_submit_prints_the_id_alone_and_the_other_commands_take_it(queue: Queue, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.txt", 600)
    done = queue.run("submit", "--task", "test-echo", str(source), "--name", "my job")
    job = done.stdout.strip()
    assert len(job) == 12 and done.stderr == ""
    queue.run("wait", job)
    status = queue.status(job)
    assert status["status"] == "completed"
    assert status["counts"] == {"records": 600, "done": 600, "succeeded": 600, "failed": 0, "truncated": 0}
    assert [row["output"] for row in queue.results(job)] == [f"LINE {n}" for n in range(600)]
    assert "my job" in queue.run("jobs").stdout
    assert [row["id"] for row in json.loads(queue.run("jobs", "--json", "--name", "my job").stdout)] == [job]
    assert "completed" in queue.run("watch", job).stderr
    assert queue.run("retry", job).stderr.strip().endswith("nothing to retry.")


def test_a_job_submitted_without_a_live_worker_warns_and_runs_later(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.txt", 10)
    done = shell.run("submit", "--task", "test-echo", str(source))
    assert "no live worker serves the queue 'any'" in done.stderr
    start_workers()
    shell.run("wait", done.stdout.strip())


def test_a_small_job_does_not_wait_for_a_large_one(queue: Queue, tmp_path: Path) -> None:
    options = ("--task", "test-wait", "-p", "seconds=0.2", "--chunk-size", "50")
    large = queue.submit(*options, str(write_lines(tmp_path / "large.txt", 10_000)))
    small = queue.submit(*options, str(write_lines(tmp_path / "small.txt", 50)))
    queue.run("wait", small)
    ahead = queue.status(large)
    assert ahead["status"] == "running"
    assert ahead["counts"]["done"] < 5_000
    queue.run("cancel", large)


def test_failed_records_fail_alone_and_retry_runs_them_only(queue: Queue, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"id": "a", "text": "good"}\nnot json\n{"id": "c"}\n{"id": "d", "text": "bad"}\n{"id": 7, "text": "fine"}\n'
    )
    done = queue.run("submit", "--task", "test-echo", str(source), "-p", "fail=bad", "--wait", status=3)
    rows = lines(done.stdout)
    assert [row["id"] for row in rows] == ["a", 1, "c", "d", 7]
    codes = [row.get("error_code") for row in rows]
    assert codes == [None, "bad_json", "missing_field", "test_failure", None]
    assert [row.get("output") for row in rows] == ["GOOD", None, None, None, "FINE"]
    job = json.loads(queue.run("jobs", "--json").stdout)[0]["id"]
    again = queue.run("retry", job, "--wait", status=3)
    assert [row.get("output") for row in lines(again.stdout)] == ["GOOD", None, None, None, "FINE"]
    status = queue.status(job)
    assert (status["round"], status["counts"]["succeeded"], status["counts"]["failed"]) == (1, 2, 3)
    assert not flag.exists()


def test_cancel_takes_effect_soon_and_keeps_what_is_done(queue: Queue, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.txt", 400)
    job = queue.submit("--task", "test-wait", str(source), "-p", "seconds=0.3", "--chunk-size", "20")
    wait_until(lambda: queue.status(job)["counts"]["done"] >= 40, 60, "two chunks are done")
    queue.run("cancel", job)
    wait_until(lambda: queue.status(job)["status"] == "cancelled", 10, "cancelled")
    rows = queue.results(job)
    done = [row for row in rows if "output" in row]
    assert len(rows) == 400 and 40 <= len(done) < 400
    assert {row["error_code"] for row in rows if "error_code" in row} == {"not_run"}
    queue.run("wait", job, status=1)
    queue.run("retry", job, "-o", str(tmp_path / "all.csv"))
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 401


def test_a_model_that_is_not_there_fails_the_job_with_one_sentence(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    start_workers(HUGQUEUE_MODEL_ROOTS=str(tmp_path))
    source = write_lines(tmp_path / "in.txt", 5)
    missing = shell.run("submit", "--task", "fill-mask", str(source), "-m", str(tmp_path / "gone"), "--wait", status=1)
    assert "failed: model_not_found" in missing.stderr
    forbidden = shell.run("submit", "--task", "fill-mask", str(source), "-m", str(DEMO_MODEL), "--wait", status=1)
    assert "failed: model_not_allowed" in forbidden.stderr
    offline = shell.run("submit", "--task", "fill-mask", str(source), "-m", "no/such-model", "--wait", status=1)
    assert "failed: model_offline" in offline.stderr


def test_a_stopping_worker_finishes_or_releases_its_chunks(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    first = start_workers(HUGQUEUE_GRACE="1")
    source = write_lines(tmp_path / "in.txt", 100)
    job = shell.submit("--task", "test-wait", str(source), "-p", f"until={tmp_path / 'go'}", "--chunk-size", "10")
    wait_until(lambda: shell.status(job)["status"] == "running", 30, "the job runs")
    assert first.stop() == 0
    assert shell.status(job)["counts"]["done"] == 0
    (tmp_path / "go").touch()
    start_workers()
    shell.run("wait", job)
    assert len(shell.results(job)) == 100


def test_a_worker_that_falls_is_started_again(shell: Shell, start_workers: StartWorkers, tmp_path: Path) -> None:
    workers = start_workers()
    fallen = workers.celery()
    fallen.send_signal(signal.SIGKILL)
    fallen.wait(10)
    source = write_lines(tmp_path / "in.txt", 10)
    shell.run("wait", shell.submit("--task", "test-echo", str(source)))
    assert "starting it again" in workers.text()


def test_a_preload_that_is_not_there_starts_no_worker(start_workers: StartWorkers, tmp_path: Path) -> None:
    workers = start_workers("--preload", f"fill-mask={tmp_path / 'gone'}", ready=False)
    assert workers.process and workers.process.wait(60) == 2
    assert str(tmp_path / "gone") in workers.text()


def test_a_preload_that_cannot_be_loaded_ends_the_worker_for_good(start_workers: StartWorkers, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    workers = start_workers("--preload", f"fill-mask={tmp_path}", ready=False)
    assert workers.process and workers.process.wait(60) == 1
    assert "This worker cannot start" in workers.text()


def test_bare_celery_is_a_worker_too(
    shell: Shell, environ: dict[str, str], server: RedisServer, tmp_path: Path, start_workers: StartWorkers
) -> None:
    import subprocess
    import sys

    source = write_lines(tmp_path / "in.txt", 10)
    with (tmp_path / "celery.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "celery", "-A", "workers.app", "worker"], env=environ, stdout=log, stderr=log
        )
    try:
        shell.run("wait", shell.submit("--task", "test-echo", str(source)))
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_ctrl_c_while_waiting_on_a_real_queue_detaches(queue: Queue, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.txt", 10)
    go = tmp_path / "go"
    waiting = queue.popen("submit", "--task", "test-wait", str(source), "-p", f"until={go}", "--wait")
    job = wait_until(lambda: json.loads(queue.run("jobs", "--json", "--status", "running").stdout), 60)[0]["id"]
    waiting.send_signal(signal.SIGINT)
    _, stderr = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert f"producer watch {job}" in stderr
    go.touch()
    queue.run("wait", job)


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
def test_results_are_written_in_every_format(queue: Queue, tmp_path: Path, extension: str) -> None:
    source = write_lines(tmp_path / "in.txt", 30)
    output = tmp_path / f"out.{extension}"
    queue.run("submit", "--task", "test-echo", str(source), "-o", str(output))
    assert output.stat().st_size > 0
    assert [path.name for path in tmp_path.glob("out*")] == [output.name]
