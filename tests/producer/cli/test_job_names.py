"""How jobs are named and shown: short ids, `@last`, ages, times, completion; less said, or more."""

import json
import os
import re
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from common.durations import format_span, parse_duration
from common.errors import UnknownJob, UsageError
from common.jobs import JobSpec
from producer.client import Client
from producer.embedded.log_files import MAX_BYTES, open_log, read_entries, rotated
from tests.support.cli_processes import Terminal
from tests.support.processes import ROOT, RedisServer, Shell, lines, wait_until

NOW = 1.7e9


def write_jobs(server: RedisServer, *ids: str, at: float = NOW, status: str = "completed") -> None:
    for number, job_id in enumerate(ids):
        spec = JobSpec(job_id, "test-echo", name=f"job {number}", created_at=at + number)
        fields = {"spec": spec.encode(), "status": status, "round": 0, "ttl_ms": 1000, "chunks": 1, "records": 1}
        server.client.hset(f"hugqueue:job:{job_id}", mapping=fields | {"finished_at": at + 60.25})
        server.client.zadd("hugqueue:jobs", {job_id: spec.created_at})


def test_a_job_is_named_by_the_beginning_of_its_id_or_as_the_last(server: RedisServer, shell: Shell) -> None:
    write_jobs(server, "aaa111111111", "aab222222222", "b00333333333")
    assert json.loads(shell.run("status", "b", "--json").stdout)["id"] == "b00333333333"
    assert json.loads(shell.run("status", "@last", "--json").stdout)["id"] == "b00333333333"
    assert json.loads(shell.run("wait", "aab", "--json").stdout)[0]["id"] == "aab222222222"
    assert "is a prefix of 2 ids: aab222222222, aaa111111111" in shell.run("status", "aa", status=2).stderr
    assert "There is no job 'c'" in shell.run("watch", "c", status=1).stderr
    shell.run("delete", "aaa", "@last")
    assert json.loads(shell.run("status", "@last", "--json").stdout)["id"] == "aab222222222"
    with Client(server.url) as client:
        assert client.job("aa").id == "aab222222222"
        for unknown in ("", "*", "b0", "x" * 5000):
            with pytest.raises(UnknownJob):
                client.job(unknown)


def test_times_in_json_are_iso_8601(server: RedisServer, shell: Shell) -> None:
    write_jobs(server, "aaa111111111")
    told = shell.status("aaa111111111")
    assert (told["created_at"], told["finished_at"]) == ("2023-11-14T22:13:20.000Z", "2023-11-14T22:14:20.250Z")
    assert datetime.fromisoformat(told["created_at"]).timestamp() == NOW
    assert told["started_at"] is None


def test_old_jobs_are_deleted_and_unfinished_ones_kept(server: RedisServer, shell: Shell) -> None:
    write_jobs(server, "aaa111111111", at=NOW)
    write_jobs(server, "aab222222222", at=NOW, status="running")
    write_jobs(server, "b00333333333", at=4e9)
    shell.run("delete", "--older-than", "7d")
    assert {job["id"] for job in json.loads(shell.run("jobs", "--json").stdout)} == {"aab222222222", "b00333333333"}
    shell.run("delete", "--status", "completed")
    assert [job["id"] for job in json.loads(shell.run("jobs", "--json").stdout)] == ["aab222222222"]
    assert "is running: cancel it first" in shell.run("delete", "--status", "running", status=2).stderr
    assert "such as 30s" in shell.run("delete", "--older-than", "soon", status=2).stderr
    assert "either job ids" in shell.run("delete", "aab", "--older-than", "1s", status=2).stderr


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("30s", 30), ("1.5h", 5400), ("5M", 300), ("2w", 1209600)])
def test_a_span_of_time_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text, "--x") == seconds
    assert parse_duration(format_span(seconds), "--x") == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-1m", "1e3s", "nan", "5 minutes"])
def test_data_that_is_not_a_span_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--x"):
        parse_duration(text, "--x")


def complete(shell: Shell, *words: str) -> str:
    """Return what bash is offered for the last of the words."""
    shell.environ |= {"_PRODUCER_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["producer", *words])}
    shell.environ["COMP_CWORD"] = str(len(words))
    offered = shell.run().stdout
    del shell.environ["_PRODUCER_COMPLETE"]
    return offered.strip()


def test_shells_complete_commands_tasks_and_jobs(server: RedisServer, shell: Shell, tmp_path: Path) -> None:
    write_jobs(server, "aaa111111111", "b00333333333")
    assert "submit" in complete(shell, "sub")
    assert "Traceback" not in complete(shell, "no-such-command", "")
    assert "fill-mask" in complete(shell, "submit", "--task", "fill")
    assert "aaa111111111" in complete(shell, "status", "a") and "b00333" not in complete(shell, "status", "a")
    assert "@last" in complete(shell, "results", "")
    server.kill()
    assert complete(shell, "status", "a") == ""
    del shell.environ["REDIS_URL"]
    assert complete(shell, "status", "a") == ""  # nothing is started for it
    assert not (tmp_path / "hugqueue").exists()


def test_quiet_says_nothing_but_the_answer_and_errors(server: RedisServer, shell: Shell) -> None:
    write_jobs(server, "aaa111111111")
    done = shell.run("cancel", "-q", "aaa")
    assert done.stdout + done.stderr == ""
    assert "There is no job" in shell.run("status", "--quiet", "c", status=1).stderr
    assert "HUGQUEUE_MODELS_URL" in shell.run("models", "export", "-q", "job:aaa111111111", "there", status=2).stderr


def test_verbose_shows_the_traceback_of_an_error(shell: Shell) -> None:
    process = shell.popen("status", "-v", "c")
    _, said = process.communicate(timeout=60)
    assert "using Redis at" in said and "Traceback" in said
    assert "Error: There is no job" in said.splitlines()[-1]


def test_jobs_are_watched_on_a_terminal_until_ctrl_c(server: RedisServer, shell: Shell) -> None:
    write_jobs(server, "aaa111111111")
    assert "--watch needs a terminal" in shell.run("jobs", "--watch", status=2).stderr
    watching = Terminal(shell, "jobs", "--watch")
    watching.read_until("aaa111111111")
    write_jobs(server, "b00333333333")
    watching.read_until("b00333333333")
    assert watching.interrupt() == 130


def test_a_full_log_is_put_aside_and_not_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    for text in ("first\n  more\n" + "x" * MAX_BYTES + "\n", "second\n"):
        fd = open_log(log)
        os.write(fd, text.encode())
        os.close(fd)
    assert log.read_text() == "second\n" and rotated(log).read_text().startswith("first\n")
    found = list(read_entries(log))
    assert (found[0], found[-1]) == ("first\n  more\n", "second\n")


def test_git_ignores_what_the_examples_of_the_readme_write() -> None:
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/formats.md", "docs/recipes.md"))
    written = set(re.findall(r"(?:-o|(?<=\s)>) ([a-z][\w./-]*(?:\.\w+|/))", text))
    assert {"vectors.npy", "words.jsonl", "report.html", "parts/"} <= written
    written |= {"my-classifier/config.json", "reviews.lance/", "vectors.npy.errors.jsonl"}
    for name in written:
        done = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
        assert done.returncode == 0, name


def test_a_queue_of_one_s_own_says_where_its_logs_are(server: RedisServer, shell: Shell) -> None:
    write_jobs(server, "aaa111111111")
    assert "log where they run" in shell.run("logs", "aaa", status=2).stderr


def test_results_of_the_last_job(queue: Shell) -> None:
    (queue.directory / "in.txt").write_text("x\n")
    job = queue.submit("--task", "test-echo", "in.txt")
    queue.run("wait", "@last")
    assert lines(queue.run("results", job[:11]).stdout) == lines(queue.run("results", "@last").stdout)
    wait_until(lambda: queue.status("@last")["status"] == "completed", 10, "it is completed")
