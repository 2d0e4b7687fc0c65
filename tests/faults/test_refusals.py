"""A worker that cannot serve a job passes it over; the job fails only when no live worker is left that would."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.fault_jobs import LONG
from tests.support.processes import DEMO_MODEL, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]


def test_a_job_that_one_of_two_workers_may_not_serve_is_done_by_the_other(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    refusing = start_workers()
    source = tmp_path / "in.txt"
    source.write_text("The capital of France is [MASK].\n" * 40)
    start_workers(HUGQUEUE_MODEL_ROOTS=str(DEMO_MODEL.parent))
    job = shell.submit("--task", "fill-mask", str(source), "-m", str(DEMO_MODEL), "--chunk-size", "2")
    shell.run("wait", job)
    assert [row["output"][0]["token_str"] for row in shell.results(job)] == ["paris"] * 40
    wait_until(lambda: "refused: " in refusing.text(), LONG, "it was asked, and said no")


def test_a_job_that_fits_no_live_worker_fails_with_the_reason(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    for _ in range(2):
        start_workers(HUGQUEUE_MODEL_ROOTS=str(DEMO_MODEL.parent))
    source = tmp_path / "in.txt"
    source.write_text("one\ntwo\n")
    options = ("-m", str(DEMO_MODEL), "-p", "memory_error=true")
    done = shell.run("submit", "--task", "test-model", str(source), *options, "--wait", status=1)
    assert "no_worker_fits" in done.stderr
    [job] = [row["id"] for row in json.loads(shell.run("jobs", "--json").stdout)]
    assert "no_worker_fits" in shell.run("retry", job, "--wait", status=1, seconds=50).stderr, "asked again, at once"
    after = shell.run("submit", "--task", "test-echo", str(source), "--wait")
    assert len(after.stdout.splitlines()) == 2, "the workers live and do other jobs"
