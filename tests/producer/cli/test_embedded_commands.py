"""The commands with no queue configured: a Redis and a worker come with them and go with them."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli_processes import Terminal
from tests.support.embedded_processes import Home
from tests.support.processes import DEMO_MODEL, Shell, environment, lines, wait_until


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(environment(tmp_path, HUGQUEUE_RENEW="0.3"), tmp_path)


@pytest.fixture
def home(shell: Shell) -> Iterator[Home]:
    """The processes of `shell`; none is there when a test has ended well."""
    found = Home(shell.environ)
    yield found
    try:
        found.wait_until_empty()
    finally:
        found.end()


def write(shell: Shell, *texts: str) -> str:
    (shell.directory / "in.txt").write_text("".join(f"{text}\n" for text in texts))
    return "in.txt"


def submit_slowly(shell: Shell, chunks: int = 40) -> "subprocess.Popen[str]":
    """Start a job of four records a chunk; some are done and some are not when this returns."""
    source = write(shell, *map(str, range(4 * chunks)))
    process = shell.popen("submit", "--task", "test-wait", source, "-p", "seconds=0.3", "--chunk-size", "4")
    wait_until(lambda: sum(job["counts"]["done"] for job in jobs(shell)) >= 8, 60, "two chunks are done")
    return process


def jobs(shell: Shell) -> list[dict[str, object]]:
    told: list[dict[str, object]] = json.loads(shell.run("jobs", "--json").stdout)
    return told


def workers_started(home: Home) -> int:
    return (home.path / "daemon.log").read_text().count("started a worker")


def test_the_main_job_runs_and_its_state_stays(shell: Shell, home: Home) -> None:
    source = write(shell, "The capital of France is [MASK].", "프랑스의 수도는 [MASK]이다.")
    done = shell.run("submit", "--task", "fill-mask", source, "--model", str(DEMO_MODEL), "-p", "top_k=1")
    assert [row["output"][0]["token_str"] for row in lines(done.stdout)] == ["paris", "파리"]
    assert "started an embedded Redis" in done.stderr and str(home.path / "worker.log") in done.stderr
    home.wait_until_empty()
    [job] = jobs(shell)
    assert job["status"] == "completed"
    told = shell.run("status", str(job["id"]))
    assert "device cpu, dtype float32" in told.stdout and "None" not in told.stdout
    assert told.stderr == ""
    assert shell.run("results", str(job["id"])).stdout == done.stdout


def test_a_finished_job_is_waited_for_without_a_worker(shell: Shell, home: Home) -> None:
    shell.run("submit", "--task", "test-echo", write(shell, "x"))
    [job] = jobs(shell)
    for command in ("wait", "watch", "retry"):
        shell.run(command, str(job["id"]))
    assert workers_started(home) == 1


def test_two_at_the_same_time_share_one_daemon(shell: Shell, home: Home) -> None:
    first = submit_slowly(shell)
    second = shell.run("submit", "--task", "test-echo", "-", input="x\n")
    assert [row["output"] for row in lines(second.stdout)] == ["X"]
    assert "started an embedded Redis" not in second.stderr
    assert "is unfinished and shares the worker" in second.stderr
    stdout, _ = first.communicate(timeout=60)
    assert first.returncode == 0 and len(lines(stdout)) == 160
    home.wait_until_empty()
    assert workers_started(home) == 1


@pytest.mark.parametrize("part", ["daemon", "supervisor"])
def test_a_submit_whose_daemon_or_worker_is_killed_continues(shell: Shell, home: Home, part: str) -> None:
    shell.environ |= {"HUGQUEUE_LEASE": "3", "HUGQUEUE_REAP": "0.5"}
    process = submit_slowly(shell, chunks=12)
    if part == "daemon":
        home.daemon().kill()
    else:
        [killed] = home.processes("workers.cli")
        killed.kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert [row["output"] for row in lines(out)] == [str(number) for number in range(48)]
    assert workers_started(home) == 2
    assert ("The embedded Redis was killed; starting it again." in err) == (part == "daemon")


def test_a_submit_whose_daemon_is_stopped_reports_it(shell: Shell, home: Home) -> None:
    process = submit_slowly(shell)
    home.daemon().terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was stopped" in err and "Traceback" not in err


def test_ctrl_c_cancels_and_gives_what_is_done(shell: Shell, home: Home) -> None:
    process = submit_slowly(shell)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "finished results are kept" in stderr and "was cancelled" in stderr
    rows = lines(stdout)
    done = [row["output"] for row in rows if "output" in row]
    assert len(rows) == len(done), "what was not run has no line"
    # Whole chunks of four in order; one that had begun may be missing before one that was done.
    assert done == sorted(done, key=int) and len(done) == len(set(done))
    assert len(done) % 4 == 0 and 8 <= len(done) < 160
    home.wait_until_empty()
    assert [job["status"] for job in jobs(shell)] == ["cancelled"]


def test_a_second_ctrl_c_leaves_at_once(shell: Shell, home: Home) -> None:
    # A batch that never ends: cancelling waits for it.
    process = shell.popen("submit", "--task", "test-crash", write(shell, "hang"))
    wait_until(lambda: any(job["status"] == "running" for job in jobs(shell)), 30, "the job runs")
    wait_until(lambda: home.processes("workers.device"), 30, "the device process is there")
    process.send_signal(signal.SIGINT)
    assert process.stderr
    while "Press Ctrl-C again to exit immediately" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=5)
    assert (process.returncode, stdout) == (130, "")
    home.end()  # the daemon would give the batch some seconds more


def test_a_killed_submit_leaves_no_process_and_its_job_continues_later(shell: Shell, home: Home) -> None:
    shell.environ["HUGQUEUE_GRACE"] = "0.5"
    go, started = shell.directory / "go", shell.directory / "started"
    source = write(shell, *map(str, range(24)))
    params = ["-p", f"until={go}", "-p", f"started={started}"]
    process = shell.popen("submit", "--task", "test-wait", source, "--chunk-size", "4", *params)
    wait_until(started.exists, 60, "a chunk runs")
    process.kill()
    process.communicate(timeout=10)
    home.wait_until_empty()
    [job] = jobs(shell)
    assert job["status"] == "running"
    go.touch()
    told = shell.run("submit", "--task", "test-echo", "-", input="x\n").stderr
    assert f"Job {job['id']} (" in told and f"`producer cancel {job['id']}` stops it" in told
    shell.run("wait", str(job["id"]))
    assert len(lines(shell.run("results", str(job["id"])).stdout)) == 24


def test_a_failed_job_is_reported_and_leaves_no_process(shell: Shell, home: Home) -> None:
    source = write(shell, "x")
    done = shell.run("submit", "--task", "test-load", source, "-p", "load_error=no such thing", status=1)
    assert "failed: test_load: no such thing" in done.stderr


def test_a_device_that_the_embedded_worker_has_not_is_refused(shell: Shell, home: Home) -> None:
    shell.environ["HUGQUEUE_DEVICE"] = "cpu"
    done = shell.run("submit", "--task", "test-echo", write(shell, "x"), "--device", "gpu", status=2)
    assert "--device gpu: no queue is configured" in done.stderr
    assert done.stdout == ""
    assert jobs(shell) == []


def test_an_unknown_job_is_said_with_where_it_was_looked_for(shell: Shell, home: Home) -> None:
    done = shell.run("status", "0" * 12, status=1)
    assert "REDIS_URL is not set" in done.stderr
    assert "There is no job" in done.stderr


def test_lists_are_empty_at_first(shell: Shell, home: Home) -> None:
    assert "There are no jobs yet" in shell.run("jobs").stderr
    assert json.loads(shell.run("workers", "--json").stdout) == []


# A worker that is kept


def test_a_kept_worker_serves_the_next_command_until_it_is_ended(shell: Shell, home: Home) -> None:
    source = write(shell, "The capital of France is [MASK].")
    fill = ("submit", "--task", "fill-mask", source, "--model", str(DEMO_MODEL), "-p", "top_k=1")
    first = shell.run(*fill, "--keep-alive", "5m")
    assert "The worker keeps running for 5m" in first.stderr
    device = home.processes("workers.device")
    [job] = [str(job["id"]) for job in jobs(shell)]
    assert "chunk 1 of 1: 1 done" in shell.run("logs", job).stdout
    second = shell.run(*fill)
    assert lines(second.stdout) == lines(first.stdout)
    assert home.processes("workers.device") == device and workers_started(home) == 1
    assert "stopped" in shell.run("down").stderr
    home.wait_until_empty(seconds=5)
    assert "Nothing is running" in shell.run("down").stderr
    assert len(jobs(shell)) == 2


def test_a_kept_worker_with_other_settings_is_replaced(shell: Shell, home: Home) -> None:
    submit = ["submit", "--task", "test-echo", write(shell, "x"), "--keep-alive", "5m"]
    shell.run(*submit)
    assert "had other settings" not in shell.run(*submit).stderr
    shell.environ["HF_TOKEN"] = "of-now"
    assert "had other settings" in shell.run(*submit).stderr
    assert len(jobs(shell)) == 3 and workers_started(home) == 2
    shell.environ["HF_TOKEN"] = "of-later"
    assert "had other settings" in shell.run("retry", "@last").stderr
    home.wait_until_empty(seconds=5)


def test_a_kept_worker_ends_by_itself(shell: Shell, home: Home) -> None:
    shell.run("submit", "--task", "test-echo", write(shell, "x"), "--keep-alive", "1s")
    home.wait_until_empty(seconds=40)


def test_down_leaves_a_queue_that_is_in_use(shell: Shell, home: Home) -> None:
    process = submit_slowly(shell)
    assert "is in use by another command" in shell.run("down", status=2).stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    shell.environ["REDIS_URL"] = "redis://localhost:1/0"
    assert "where they run" in shell.run("down", status=2).stderr
    del shell.environ["REDIS_URL"]


def test_on_a_terminal_the_worker_is_kept_by_itself(shell: Shell, home: Home) -> None:
    shown = Terminal(shell, "submit", "--task", "test-echo", write(shell, "x")).text()
    assert "The worker keeps running for 5m" in shown
    assert home.processes("workers.cli start")
    shell.run("down")
