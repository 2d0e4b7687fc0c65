"""Records that kill, hang, or take all memory: each costs one record, the others some seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fault_jobs import LONG, failures
from tests.support.processes import Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]

POISON = {
    "crash": "worker_died",  # a segmentation fault
    "oom-kill": "worker_died",  # SIGKILL, as the kernel sends it
    "exit": "worker_died",
    "memory": "out_of_memory",  # MemoryError
    "hang": "timeout",
    "raise": "runner_error",
}


def submit(shell: Shell, path: Path, texts: list[str], *options: str) -> str:
    path.write_text("".join(f"{text}\n" for text in texts))
    return shell.submit("--task", "test-crash", str(path), *options)


def check(shell: Shell, job: str, texts: list[str], codes: dict[str, str]) -> None:
    """See that every record has its outcome: the poisoned ones their codes, all others their results."""
    shell.run("wait", job, status=3, seconds=LONG)
    rows = shell.results(job)
    assert [row["text"] for row in rows] == texts
    assert failures(rows) == {f'"{text}"': code for text, code in codes.items()}
    assert [row["output"] for row in rows if "output" in row] == [text.upper() for text in texts if text not in codes]


def test_each_poisoned_record_fails_with_its_code_and_all_others_succeed(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    workers = start_workers(HUGQUEUE_BATCH_TIMEOUT="2")
    celery = workers.celery().pid
    texts = [f"text {number}" for number in range(60)]
    for number, text in enumerate(POISON):
        texts.insert(number * 10 + 3, text)
    job = submit(shell, tmp_path / "in.txt", texts, "--chunk-size", "22")
    check(shell, job, texts, POISON)
    assert workers.celery().pid == celery, "the Celery process outlives them all"


def test_after_three_worker_deaths_a_chunk_runs_record_by_record(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    texts = ["a", "b", "kill-worker", "c", "d"]
    job = submit(shell, tmp_path / "in.txt", texts)
    # Each of them dies once or twice over it: together quicker than one that is started again and again.
    workers = [start_workers(ready=False, HUGQUEUE_LEASE="1.5") for _ in range(3)]
    check(shell, job, texts, {"kill-worker": "worker_died"})
    assert "ran alone" in next(row["error_message"] for row in shell.results(job) if "error_code" in row)
    assert sum(one.text().count("ended with status -9") for one in workers) == 5, "three in company, two alone"


@pytest.mark.faults
def test_a_chunk_that_hangs_in_every_record_ends(shell: Shell, start_workers: StartWorkers, tmp_path: Path) -> None:
    start_workers(HUGQUEUE_BATCH_TIMEOUT="1.5")
    texts = ["hang:1", "hang:2", "hang:3"]
    job = submit(shell, tmp_path / "in.txt", texts)
    shell.run("wait", job, status=3, seconds=LONG)
    assert [row["error_code"] for row in shell.results(job)] == ["timeout"] * 3


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_poison_in_every_chunk_of_a_large_job_costs_as_many_records(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    workers = [start_workers(), start_workers()]
    killers = ("crash", "oom-kill", "exit", "memory", "raise")
    texts = [killers[n // 100 % 5] if n % 100 == 50 else f"text {n}" for n in range(4000)]
    job = submit(shell, tmp_path / "in.txt", texts, "--chunk-size", "100")
    wait_until(lambda: shell.status(job)["status"] not in ("queued", "running"), 800, "the job ends")
    rows = shell.results(job)
    assert [row["error_code"] for row in rows if "error_code" in row] == [POISON[killers[n % 5]] for n in range(40)]
    assert sum("output" in row for row in rows) == 3960
    assert not any("ended with status" in one.text() for one in workers)
