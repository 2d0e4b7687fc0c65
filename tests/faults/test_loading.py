"""A model that takes long to load, and a death right after: the work goes on, and not in a spiral of loading."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fault_jobs import failures
from tests.support.processes import Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]


def submit(shell: Shell, directory: Path, texts: list[str], *params: str) -> str:
    source = directory / "in.txt"
    source.write_text("".join(f"{text}\n" for text in texts))
    return shell.submit("--task", "test-load", str(source), *params)


#: What users have who set nothing.
DEFAULTS = {"HUGQUEUE_LEASE": "30", "HUGQUEUE_RENEW": "1", "HUGQUEUE_REAP": "5"}


@pytest.mark.parametrize(
    ("seconds", "limits"),
    [(2, {}), pytest.param(60, DEFAULTS, marks=[pytest.mark.faults, pytest.mark.timeout(900)])],
)
def test_a_death_right_after_a_slow_load_costs_a_few_loads_and_no_more(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path, seconds: float, limits: dict[str, str]
) -> None:
    workers = start_workers(**limits)
    log = tmp_path / "loads"
    celery = workers.celery().pid
    texts = [f"text {number}" for number in range(20)]
    texts[0] = "crash"  # in the first batch
    slow = ("-p", f"load_seconds={seconds}", "-p", f"load_log={log}")
    job = submit(shell, tmp_path, texts, *slow, "--chunk-size", "4")
    shell.run("wait", job, status=3, seconds=5 * seconds + 120)
    rows = shell.results(job)
    assert failures(rows) == {'"crash"': "worker_died"}
    assert [row["output"] for row in rows[1:]] == [text.upper() for text in texts[1:]]
    assert workers.text().count("the device process ended") == 2, "once in company, once alone"
    assert log.read_text().count("loaded") == 3, "the first, and one after each death"
    assert workers.celery().pid == celery


@pytest.mark.faults
def test_a_worker_that_dies_while_it_loads_costs_its_load(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    workers = start_workers()
    job = submit(shell, tmp_path, ["a", "b", "c", "d"], "-p", "load_seconds=3", "--chunk-size", "1")
    wait_until(lambda: "loading" in shell.status(job)["stage"], 60, "the model is being loaded")
    workers.celery().send_signal(signal.SIGKILL)
    shell.run("wait", job)
    assert [row["output"] for row in shell.results(job)] == ["A", "B", "C", "D"]
    assert workers.text().count("ended with status") == 1


def test_a_model_whose_loading_worker_is_killed_is_served_by_another(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    fatal = tmp_path / "fatal"
    fatal.touch()
    small = start_workers(FATAL=str(fatal))
    options = ("-p", "load_kill=$FATAL", "--chunk-size", "1")
    job = submit(shell, tmp_path, ["a"], *options)
    shell.run("wait", job, status=1)
    assert shell.status(job)["error"]["code"] == "no_worker_fits", "no other was there"
    start_workers()
    job = submit(shell, tmp_path, ["a"] * 50, *options)
    shell.run("wait", job)
    assert [row["output"] for row in shell.results(job)] == ["A"] * 50
    assert small.text().count("the device process ended") <= 12, "twice a job, for each of three slots at most"


def test_a_load_that_is_stuck_is_left_to_another_worker(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    stuck = tmp_path / "stuck"
    stuck.touch()
    sticking, _ = start_workers(STUCK=str(stuck), HUGQUEUE_LOAD_TIMEOUT="2"), start_workers()
    options = ("-p", "load_stuck=$STUCK", "-p", "batch_seconds=0.5", "--chunk-size", "1")
    job = submit(shell, tmp_path, ["a"] * 12, *options)
    shell.run("wait", job)
    assert [row["output"] for row in shell.results(job)] == ["A"] * 12
    assert "HUGQUEUE_LOAD_TIMEOUT" in sticking.text()


def test_a_model_whose_loading_kills_fails_its_job_at_once_and_no_other(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    workers = start_workers()
    celery = workers.celery().pid
    fatal = tmp_path / "fatal"
    fatal.touch()
    job = submit(shell, tmp_path, ["a"] * 50, "-p", f"load_crash={fatal}", "--chunk-size", "1")
    shell.run("wait", job, status=1)
    assert shell.status(job)["error"]["code"] == "model_kills_worker"
    assert workers.text().count("the device process ended") <= 6, "twice for each of three slots at most"
    fatal.unlink()
    shell.run("retry", job)
    shell.run("wait", job)
    assert [row["output"] for row in shell.results(job)] == ["A"] * 50
    assert workers.celery().pid == celery
