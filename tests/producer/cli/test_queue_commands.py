"""The commands on a real queue: what they print where, their JSON, and their exit status."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.redis.keys import JobKeys
from tests.support.cli_processes import Queue, Terminal
from tests.support.processes import lines, wait_until


@pytest.fixture(scope="module")
def good(queue: Queue) -> str:
    """A completed job of three records."""
    job = queue.submit("--task", "test-echo", queue.write("good.txt", "one", "two", "three"), "--name", "the good one")
    queue.run("wait", job)
    return job


@pytest.fixture(scope="module")
def flawed(queue: Queue) -> str:
    """A completed job of two records, one of them failed."""
    job = queue.submit("--task", "test-echo", queue.write("flawed.txt", "bad", "fine"), "-p", "fail=bad")
    queue.run("wait", job, status=3)
    return job


@pytest.fixture(scope="module")
def failed(queue: Queue) -> str:
    """A job that failed as a whole."""
    job = queue.submit("--task", "test-load", queue.write("failed.txt", "x"), "-p", "load_error=no such thing")
    queue.run("wait", job, status=1)
    return job


@pytest.fixture
def slow(queue: Queue, tmp_path: Path) -> Iterator[str]:
    """A job that runs until it is cancelled."""
    source = queue.write("slow.txt", *map(str, range(40)))
    job = queue.submit(
        "--task", "test-wait", source, "-p", f"until={tmp_path / 'go'}", "--chunk-size", "4", "--priority", "low"
    )
    yield job
    queue.run("cancel", job)
    queue.run("wait", job, status=1)


# The answer and the talk


def test_submit_prints_the_id_or_with_json_the_job(queue: Queue) -> None:
    source = queue.write("in.txt", "x")
    job = queue.submit("--task", "test-echo", source)
    assert len(job) == 12
    told = json.loads(queue.run("submit", "--task", "test-echo", source, "--json", "--priority", "high").stdout)
    assert (told["task"], told["priority"], told["counts"]["records"]) == ("test-echo", "high", 1)
    queue.run("wait", job, told["id"])


def test_wait_prints_results_on_stdout_and_messages_on_stderr(queue: Queue) -> None:
    done = queue.run("submit", "--task", "test-echo", queue.write("in.txt", "x", "y"), "--wait")
    assert [row["output"] for row in lines(done.stdout)] == ["X", "Y"]
    assert "2 records for test-echo" in done.stderr


def test_an_output_file_is_named_on_stderr_and_stdout_stays_empty(queue: Queue, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = queue.run("submit", "--task", "test-echo", queue.write("in.txt", "x"), "-o", str(output))
    assert done.stdout == ""
    assert f"wrote 1 records to {output}" in done.stderr
    assert lines(output.read_text()) == [{"text": "x", "id": 0, "output": "X"}]


def test_records_come_from_standard_input(queue: Queue) -> None:
    data = '{"id": "a", "text": "한국"}\n{"id": "b", "text": "🙂"}\n'
    done = queue.run("submit", "--task", "test-echo", "-", "--format", "jsonl", "--wait", input=data)
    assert [(row["id"], row["output"]) for row in lines(done.stdout)] == [("a", "한국"), ("b", "🙂")]


def test_a_reader_that_has_enough_ends_results_quietly(queue: Queue) -> None:
    job = queue.submit("--task", "test-echo", queue.write("many.txt", *map(str, range(20_000))), "--chunk-size", "5000")
    queue.run("wait", job)
    results = queue.popen("results", job)
    assert results.stdout and results.stderr
    assert json.loads(results.stdout.readline())["id"] == 0
    results.stdout.close()
    assert results.stderr.read() == ""
    assert results.wait(30) == 0


def test_a_full_disk_behind_stdout_is_said(queue: Queue, good: str) -> None:
    with Path("/dev/full").open("w") as full:
        process = queue.popen("results", good, stdout=full)
        assert "Cannot write to standard output: No space left on device" in process.communicate(timeout=30)[1]
    assert process.returncode == 1


# Exit status


def test_the_exit_status_shows_how_jobs_ended(queue: Queue, good: str, flawed: str, failed: str) -> None:
    queue.run("watch", good)
    queue.run("wait", good, flawed, status=3)
    queue.run("wait", failed, flawed, good, status=1)
    assert "failed: test_load: no such thing" in queue.run("watch", failed, status=1).stderr
    assert "1 of 2 records failed (test_failure 1); `producer results" in queue.run("watch", flawed, status=3).stderr


def test_a_job_of_records_that_cannot_be_read_is_completed_without_results(queue: Queue) -> None:
    source = queue.directory / "broken.jsonl"
    source.write_text("not json\n[1]\n")
    done = queue.run("submit", "--task", "test-echo", str(source), "--wait", status=3)
    assert [row["error_code"] for row in lines(done.stdout)] == ["bad_json", "bad_json"]
    assert "2 of 2 records are invalid" in done.stderr


def test_ctrl_c_ends_the_waiting_and_not_the_job(queue: Queue, slow: str) -> None:
    wait_until(lambda: queue.status(slow)["status"] == "running", 30, "the job runs")
    for command in ("watch", "wait"):
        waiting = queue.popen(command, slow)
        process = psutil.Process(waiting.pid)
        wait_until(process.net_connections, 30, f"{command} looks at Redis")
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == 130
    assert queue.status(slow)["status"] == "running"


@pytest.mark.parametrize("command", ["status", "wait", "watch", "results", "retry", "cancel"])
def test_an_unknown_job_is_said_with_the_way_to_the_known_ones(queue: Queue, command: str) -> None:
    done = queue.run(command, "0" * 12, status=1)
    assert done.stdout == ""
    assert "There is no job '000000000000'. `producer jobs` lists" in done.stderr


# JSON and tables


def test_status_shows_everything_as_json_and_as_text(queue: Queue, good: str, failed: str) -> None:
    told = queue.status(good)
    assert told["counts"] == {"records": 3, "done": 3, "succeeded": 3, "failed": 0, "truncated": 0}
    assert told["status"] == "completed" and told["name"] == "the good one" and told["error"] is None
    assert told["created_at"] <= told["started_at"] <= told["finished_at"]
    text = queue.run("status", good).stdout
    assert text.startswith("job") and "None" not in text
    for words in ("the good one", "completed", "3 of 3 done, 0 failed", "device cpu", "good.txt"):
        assert words in text
    assert queue.status(failed)["error"] == {"code": "test_load", "message": "no such thing"}
    assert "test_load: no such thing" in queue.run("status", failed).stdout


def test_jobs_lists_the_newest_first_and_narrows(queue: Queue, good: str, failed: str) -> None:
    told = json.loads(queue.run("jobs", "--json").stdout)
    times = [job["created_at"] for job in told]
    assert {good, failed} <= {job["id"] for job in told} and times == sorted(times, reverse=True)
    only = json.loads(queue.run("jobs", "--json", "--status", "failed").stdout)
    assert [job["id"] for job in only] == [failed]
    assert len(json.loads(queue.run("jobs", "--json", "--limit", "1").stdout)) == 1
    table = queue.run("jobs").stdout.splitlines()
    assert table[0].split() == ["JOB", "STATUS", "TASK", "MODEL", "DONE", "FAILED", "AGE", "NAME"]
    [row] = [line for line in table if line.startswith(good)]
    assert row.split()[:4] == [good, "completed", "test-echo", "3/3"] and row.endswith("the good one")


def test_wait_and_watch_print_the_finished_jobs_as_json(queue: Queue, good: str, flawed: str) -> None:
    told = json.loads(queue.run("wait", flawed, good, "--json", status=3).stdout)
    assert [(job["id"], job["counts"]["failed"]) for job in told] == [(flawed, 1), (good, 0)]
    assert json.loads(queue.run("watch", good, "--json").stdout)["id"] == good


def test_workers_are_listed_with_what_they_have(queue: Queue) -> None:
    [worker] = json.loads(queue.run("workers", "--json").stdout)
    assert (worker["device"], worker["state"], sorted(worker["queues"])) == ("cpu", "ready", ["any", "cpu"])
    assert worker["memory_bytes"] > 10 * 2**20
    table = queue.run("workers").stdout
    assert worker["name"] in table and "cpu (" in table


def test_tasks_are_listed_with_their_default_models(queue: Queue) -> None:
    told = {task["name"]: task for task in json.loads(queue.run("tasks", "--json").stdout)}
    assert told["sentiment-analysis"]["output"] == "struct<label: string, score: double>"
    assert told["test-echo"]["output"] is None  # only its runner knows
    assert told["fill-mask"]["model"] == "distilbert/distilroberta-base" and told["fill-mask"]["revision"]
    assert told["question-answering"]["fields"] == [["question", "context"]]
    table = queue.run("tasks").stdout
    assert all(name in table for name in told)


# Cancel and retry


def test_cancel_stops_those_it_knows_and_names_the_others(queue: Queue, slow: str, good: str) -> None:
    done = queue.run("cancel", slow, "0" * 12, good, status=1)
    assert f"job {slow}: cancel" in done.stderr
    assert f"job {good}: was already completed" in done.stderr
    assert "There is no job '000000000000'" in done.stderr
    told = json.loads(queue.run("cancel", slow, good, "--json").stdout)
    assert [job["id"] for job in told] == [slow, good]


def test_retry_prints_the_id_and_runs_only_what_failed(queue: Queue, flawed: str, good: str) -> None:
    assert queue.run("retry", flawed).stdout.strip() == flawed
    queue.run("wait", flawed, status=3)
    assert queue.status(flawed)["round"] == 1
    again = queue.run("retry", good, "--wait")
    assert "there is nothing to retry" in again.stderr
    assert [row["output"] for row in lines(again.stdout)] == ["ONE", "TWO", "THREE"]


def test_a_job_that_still_runs_cannot_be_retried(queue: Queue, slow: str) -> None:
    assert "cannot be retried: it is" in queue.run("retry", slow, status=2).stderr


# Devices


def test_a_device_that_no_live_worker_has_is_warned_about(queue: Queue) -> None:
    done = queue.run("submit", "--task", "test-echo", queue.write("in.txt", "x"), "--device", "gpu")
    assert "Warning: no live worker serves the queue 'gpu'" in done.stderr
    report = queue.run(
        "submit", "--task", "test-echo", queue.write("in.txt", "x"), "--device", "gpu", "--dry-run", status=1
    )
    assert "gpu: no live worker serves it" in report.stdout
    queue.run("cancel", done.stdout.strip())


def test_a_model_that_is_not_here_may_be_on_the_workers_machine(queue: Queue) -> None:
    examples = queue.write("reviews.csv", "text,label", "good,1", "bad,0")
    for command in (["submit", "--task", "test-echo", queue.write("in.txt", "x")], ["finetune", examples]):
        done = queue.run(*command, "-m", "/gone/model")
        assert "Warning: There is no directory /gone/model on this machine" in done.stderr
    queue.run("cancel", done.stdout.strip())


def test_a_job_that_trained_no_model_is_refused_as_a_model(queue: Queue, good: str) -> None:
    source = queue.write("in.txt", "x")
    for more in ([], ["--dry-run"]):
        said = queue.run("submit", "--task", "test-echo", source, "-m", f"job:{good}", *more, status=2).stderr
        assert "that job ran test-echo and trained no model" in said
    examples = queue.write("reviews.csv", "text,label", "good,1", "bad,0")
    assert "trained no model" in queue.run("finetune", examples, "-m", f"job:{good}", status=2).stderr
    queue.run("submit", "--task", "test-echo", source, "-m", "job:0123456789ab")  # forgotten, for all that is known


def test_a_worker_that_skips_a_job_is_shown_with_its_reason(queue: Queue) -> None:
    job = queue.submit("--task", "test-echo", queue.write("in.txt", "x"), "--device", "gpu")
    queue.server.client.hset(JobKeys.of(job).refusals, "gpu0-1@there", "the disk is full")
    assert queue.status(job)["refusals"] == {"gpu0-1@there": "the disk is full"}
    assert "by gpu0-1@there: the disk is full" in queue.run("status", job).stdout
    watching = queue.popen("watch", job)
    assert watching.stderr
    assert watching.stderr.readline() == "Worker gpu0-1@there skips this job for now: the disk is full\n"
    queue.run("cancel", job)
    assert watching.wait(30) == 1


# On a terminal


def test_on_a_terminal_a_bar_shows_the_progress_and_a_table_the_results(queue: Queue) -> None:
    source = queue.write("in.txt", *(f"record {number}" for number in range(6)))
    shown = Terminal(
        queue, "submit", "--task", "test-wait", source, "-p", "seconds=0.4", "--chunk-size", "2", "--wait"
    ).text()
    assert ("━" in shown and "6/6" in shown and "records/s" in shown and "0:00:0" in shown) or "00:0" in shown
    assert "INPUT" in shown and "RECORD 5" in shown
    assert '{"id"' not in shown


def test_with_json_a_terminal_gets_lines_too(queue: Queue, good: str) -> None:
    shown = Terminal(queue, "results", good, "--json").text()
    assert [row["output"] for row in lines(shown)] == ["ONE", "TWO", "THREE"]


def test_a_table_fits_into_the_terminal(queue: Queue) -> None:
    shown = Terminal(queue, "tasks").text()
    assert max(map(len, re.sub(r"\x1b\[\d+m", "", shown).splitlines())) <= 120
    assert "zero-shot-classification" in shown


@pytest.mark.parametrize("columns", [80, 100])
def test_a_narrow_table_cuts_columns_and_no_status(queue: Queue, good: str, failed: str, columns: int) -> None:
    shown = re.sub(r"\x1b\[[\d;]+m", "", Terminal(queue, "jobs", columns=columns).text()).splitlines()
    assert max(map(len, shown)) <= columns
    assert all(len(line.split()[0]) == 12 for line in shown if line.strip() and not line.startswith("JOB"))
    [row] = [line for line in shown if line.startswith(failed)]
    assert row.split()[1] == "failed"
    at = shown[0].index("FAILED") + len("FAILED")
    assert {line[at - 1] for line in shown[1:] if line.strip()} <= set("0123456789")


def test_a_pipe_gets_a_progress_line_for_every_tenth(queue: Queue) -> None:
    source = queue.write("in.txt", *map(str, range(40)))
    done = queue.run(
        "submit", "--task", "test-wait", source, "-p", "seconds=0.5", "--chunk-size", "4", "--wait", seconds=60
    )
    told = re.findall(r"^(\d+) of 40 records done \(\d+ %\)$", done.stderr, re.MULTILINE)
    assert 2 <= len(told) <= 10 and told == sorted(set(told), key=int)


def test_a_failed_job_sends_a_pipe_no_line_for_records_that_did_not_run(queue: Queue) -> None:
    source = queue.write("in.txt", "x", "y")
    done = queue.run("submit", "--task", "test-load", source, "-p", "load_error=no", "--wait", status=1)
    assert done.stdout == ""
    assert "failed: test_load: no" in done.stderr


def test_failed_records_are_counted_by_code_and_shown(queue: Queue, flawed: str, tmp_path: Path) -> None:
    said = queue.run("watch", flawed, status=3).stderr
    assert f"(test_failure 1); `producer results {flawed} --failed` shows them, `producer retry" in said
    [row] = lines(queue.run("results", flawed, "--failed").stdout)
    assert (row["text"], row["error_code"]) == ("bad", "test_failure")
    queue.run("results", flawed, "--failed", "-o", str(tmp_path / "failed.jsonl"))
    assert lines((tmp_path / "failed.jsonl").read_text()) == [row]
    assert "cannot be combined with --failed" in queue.run("results", flawed, "--failed", "--follow", status=2).stderr


def test_a_retry_is_proposed_only_where_it_can_help(queue: Queue) -> None:
    source = queue.directory / "broken.jsonl"
    source.write_text("not json\n{}\n")
    said = queue.run("submit", "--task", "test-echo", str(source), "--wait", status=3).stderr
    assert "(bad_json 1, missing_field 1)" in said
    assert "producer retry" not in said and "fix the input" in said


def test_a_pipe_gets_no_escape_sequences(queue: Queue, good: str) -> None:
    for command in (["jobs"], ["status", good], ["tasks"], ["workers"], ["results", good]):
        done = queue.run(*command)
        assert "\x1b" not in done.stdout + done.stderr
        assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_waiting_continues_while_redis_is_unavailable(queue: Queue, tmp_path: Path) -> None:
    go = tmp_path / "go"
    waiting = queue.popen("submit", "--task", "test-wait", queue.write("in.txt", "x"), "-p", f"until={go}", "--wait")
    assert waiting.stderr
    assert "1 records for test-wait" in waiting.stderr.readline()
    wait_until(lambda: json.loads(queue.run("jobs", "--json", "--status", "running").stdout), 30, "the job runs")
    queue.server.kill()
    assert "Waiting for it." in waiting.stderr.readline()
    queue.server.start()
    go.touch()
    stdout, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert [row["output"] for row in lines(stdout)] == ["X"]
