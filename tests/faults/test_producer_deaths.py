"""The command that submits dies in the middle, or its input is slow in coming."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from common.jobs import JobStatus
from common.queue.jobs import JobStore
from common.redis.keys import JobKeys
from tests.support.processes import RedisServer, Shell, Workers, wait_until
from tests.support.waiting_producers import AT_ONCE

StartWorkers = Callable[..., Workers]

TTL = 2.0


@contextmanager
def half_submitted(shell: Shell, server: RedisServer, log: Path) -> Iterator[tuple["Popen[str]", str]]:
    """Submit from standard input, which gave some chunks and is still open; yield the process and the job's id."""
    arguments = ["submit", "--task", "test-wait", "-", "--chunk-size", "10", "-p", f"log={log}"]
    process = shell.popen(*arguments, stdin=PIPE)
    assert process.stdin
    try:
        process.stdin.write("".join(f"line {number}\n" for number in range(95)))
        process.stdin.flush()
        store = JobStore(server.client, result_ttl=100)
        [job] = wait_until(store.active, 60, "the job is there")
        wait_until(lambda: server.client.hlen(JobKeys.of(job).input) == 9, 60, "its first chunks are there")
        assert store.job(job).status is JobStatus.SUBMITTING
        yield process, job
    finally:
        process.kill()
        process.communicate()


def test_a_job_whose_producer_is_killed_midway_runs_nothing_and_is_removed(
    shell: Shell, start_workers: StartWorkers, server: RedisServer, tmp_path: Path
) -> None:
    workers = start_workers(HUGQUEUE_PRODUCER_TTL=str(TTL))
    with half_submitted(shell, server, tmp_path / "ran") as (process, job):
        process.kill()
        store = JobStore(server.client, result_ttl=100)
        wait_until(lambda: store.job(job).status is JobStatus.FAILED, 60, "it is given up")
    assert shell.status(job)["error"]["code"] == "producer_died"
    assert not server.client.exists(JobKeys.of(job).input)
    assert store.active() == []
    assert all(server.client.pttl(key) > 0 for key in server.client.scan_iter(f"{JobKeys.of(job).job}*"))
    assert not (tmp_path / "ran").exists() and "test-wait" not in workers.text().partition(" ready.")[2]
    assert "was never accepted; submit it again" in shell.run("retry", job, status=2).stderr
    assert shell.results(job) == []


def test_a_producer_frozen_until_its_job_is_abandoned_leaves_nothing(
    shell: Shell, start_workers: StartWorkers, server: RedisServer, tmp_path: Path
) -> None:
    start_workers(HUGQUEUE_PRODUCER_TTL=str(TTL))
    with half_submitted(shell, server, tmp_path / "ran") as (process, job):
        process.send_signal(signal.SIGSTOP)
        store = JobStore(server.client, result_ttl=100)
        wait_until(lambda: store.job(job).status is JobStatus.FAILED, 60, "it is given up")
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate("more\n" * 20)
    assert (process.returncode, out) == (1, ""), err
    assert f"Job {job} cannot be submitted completely: workers abandoned it" in err
    assert server.client.keys(f"{JobKeys.of(job).job}*") == []
    assert list(store.each_job()) == store.active() == []


def test_a_submit_during_which_redis_freezes_ends_within_ten_seconds(
    shell: Shell, server: RedisServer, tmp_path: Path
) -> None:
    with half_submitted(shell, server, tmp_path / "ran") as (process, job):
        server.signal(signal.SIGSTOP)
        start = time.monotonic()
        out, err = process.communicate("more\n" * 20)
        assert time.monotonic() - start < AT_ONCE
        server.signal(signal.SIGCONT)
    assert (process.returncode, out) == (1, ""), err
    assert f"does not answer. If job {job} is incomplete" in err


def test_a_producer_whose_input_comes_slowly_is_not_considered_dead(
    shell: Shell, start_workers: StartWorkers, server: RedisServer, tmp_path: Path
) -> None:
    start_workers(HUGQUEUE_PRODUCER_TTL=str(TTL))
    shell.environ["HUGQUEUE_PRODUCER_TTL"] = str(TTL)
    with half_submitted(shell, server, tmp_path / "ran") as (process, job):
        start, store = time.monotonic(), JobStore(server.client, result_ttl=100)
        wait_until(lambda: time.monotonic() > start + 2 * TTL or store.job(job).status.finished, 60)
        out, err = process.communicate("the end\n")
        assert (process.returncode, out.strip()) == (0, job), err
    shell.run("wait", job)
    assert [row["output"] for row in shell.results(job)][-2:] == ["LINE 94", "THE END"]
    assert len(shell.results(job)) == 96


def test_a_producer_that_is_interrupted_in_the_middle_takes_its_job_back(
    shell: Shell, server: RedisServer, tmp_path: Path
) -> None:
    with half_submitted(shell, server, tmp_path / "ran") as (process, job):
        process.send_signal(2)
        process.communicate()
        assert process.returncode == 130
    assert server.client.keys(f"{JobKeys.of(job).job}*") == []
    assert list(JobStore(server.client, result_ttl=100).each_job()) == []
