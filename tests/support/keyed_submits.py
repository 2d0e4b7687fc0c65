"""Submits under an idempotency key, of 95 records in ten chunks; whole ones and such that are cut off."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from common.redis.keys import JobKeys
from producer.queue_connection import QueueConnection
from tests.support.processes import Shell, wait_until

KEY = ("--idempotency-key", "nightly 7")
#: Seconds after which a silent producer's job is abandoned.
TTL = "3"
LINES = [f"line {number}\n" for number in range(95)]
#: Six chunks of them, and five records of the next.
HEAD = "".join(LINES[:65])


def arguments(name: Path | str, *more: str) -> list[str]:
    return ["submit", "--task", "test-echo", str(name), "--chunk-size", "10", *KEY, *more]


@contextmanager
def cut_off(shell: Shell, connection: QueueConnection, text: str, chunks: int) -> Iterator["Popen[str]"]:
    """Submit from standard input, which gave `text` and is still open, so that `chunks` are written."""
    process = shell.popen(*arguments("-"), stdin=PIPE)
    assert process.stdin
    process.stdin.write(text)
    process.stdin.flush()
    try:
        [job] = wait_until(connection.store.active, 60, "the job is there")
        wait_until(lambda: connection.store.client.hlen(JobKeys.of(job).input) == chunks, 60, "its first chunks")
        yield process
    finally:
        process.kill()
        process.communicate()


def the_job(connection: QueueConnection) -> str:
    """Return the id of the one job that is not abandoned."""
    [job] = [job for job in connection.store.each_job() if job.failure is None]
    return job.id


def inputs_of(shell: Shell, job: str) -> list[str]:
    return [row["text"] for row in shell.results(job)]
