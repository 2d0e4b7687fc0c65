"""Untrusted text cannot pose as a line of hugqueue, nor move the cursor: in tables, messages and logs."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable

import pytest

from common.display_text import one_line
from common.jobs import JobSpec, new_job_id
from common.redis.keys import JobKeys
from tests.support import forged_redis_data
from tests.support.processes import ROOT, RedisServer, Shell, Workers, wait_until

EVIL = "first\x1b[2J\n2026-11-28 00:00:00,000 ERROR forged\r\tend\u2028more"


def test_one_line_has_no_breaks_no_control_characters_and_a_limit() -> None:
    assert one_line(EVIL).splitlines() == [one_line(EVIL)]
    assert "\x1b" not in one_line(EVIL)
    assert one_line("x" * 10, 4) == "xxx…"


def test_forged_texts_stay_in_their_row(server: RedisServer, shell: Shell) -> None:
    fields = {"status": "failed", "failure_code": EVIL, "failure_message": EVIL, "stage": EVIL, "finished_at": "5"}
    job = forged_redis_data.write_job(server.client, fields, inputs=[EVIL], params={"a": EVIL})
    server.client.hset(JobKeys.of(job).refusals, EVIL, EVIL)
    for command in (["jobs"], ["status", job], ["watch", job], ["wait", job]):
        done = shell.run(*command, status=None)
        text = done.stdout + done.stderr
        assert "\x1b" not in text and "\r" not in text
        assert not [line for line in text.splitlines() if line.startswith(("2026-11-28", "more"))], text


@pytest.mark.parametrize(
    "values",
    [{key: "x" * 5000} for key in ("task", "model", "revision", "name", "store")]
    + [{key: "a\nb"} for key in ("task", "model", "revision", "name", "store")]
    + [{"inputs": ["x" * 9000]}, {"output": {"location": "/x" * 3000, "format": "parquet"}}, {"labels": {"a": "b\nc"}}],
)
def test_a_job_whose_names_are_too_long_or_no_line_is_refused(values: dict[str, object]) -> None:
    raw = json.loads(JobSpec(new_job_id(), "test-echo").encode()) | values
    with pytest.raises(ValueError, match=r"up to|one line"):
        JobSpec.decode(json.dumps(raw))


def test_a_name_that_is_too_long_is_refused_at_submit(shell: Shell, server: RedisServer) -> None:
    (shell.directory / "in.txt").write_text("x\n")
    said = shell.run("submit", "--task", "test-echo", "in.txt", "--name", "n" * 257, status=2).stderr
    assert "one line of up to 256 characters" in said
    assert server.client.keys("hugqueue:job*") == []


def test_a_failure_s_message_is_one_line_of_the_worker_s_log(
    shell: Shell, start_workers: Callable[..., Workers]
) -> None:
    workers = start_workers()
    (shell.directory / "in.txt").write_text("x\n")
    job = shell.submit("--task", "test-load", "in.txt", "-p", f"load_error={EVIL}")
    shell.run("wait", job, status=1)
    wait_until(lambda: f"job {job} failed" in workers.text(), 30, "the failure is logged")
    assert "\x1b[2J" not in workers.text()
    assert not [line for line in workers.text().splitlines() if line.startswith("2026-11-28 00:00:00,000 ERROR forged")]


def test_a_traceback_in_a_log_is_indented() -> None:
    code = (
        "import logging\nfrom common.logs import configure_logging\nconfigure_logging()\n"
        f"try: raise ValueError({EVIL!r})\nexcept ValueError: logging.exception('a fault of %s', {EVIL!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, *rest = done.stderr.splitlines()
    assert "a fault of first" in first and rest
    assert all(line.startswith("    ") for line in rest), done.stderr
    assert "\x1b" not in done.stderr


def test_records_of_a_program_that_imports_us_stay_its_own() -> None:
    import producer  # noqa: F401

    assert logging.getLogRecordFactory() is logging.LogRecord
