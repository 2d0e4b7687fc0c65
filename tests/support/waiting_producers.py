"""Producers that wait for a job, and commands that begin while Redis cannot be reached."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from common.redis import keys
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import Shell, lines, wait_until

#: Seconds in which a command that cannot reach Redis ends.
AT_ONCE = 10.0
#: The same where other tests take the processors from it.
AT_ONCE_AMONG_OTHERS = 15.0


class Waiting:
    """`producer submit --wait`, which is expected to give the results in the end."""

    def __init__(self, batch: Batch, directory: Path, shell: Shell | None = None) -> None:
        self.batch = batch
        self._out, self._err = directory / f"{batch.source.stem}.out", directory / f"{batch.source.stem}.err"
        known = self._jobs()
        with self._out.open("w") as out, self._err.open("w") as err:
            arguments = ("submit", *batch.arguments(), "--wait")
            self.process = (shell or batch.shell).popen(*arguments, stdout=out, stderr=err)
        batch.id = wait_until(lambda: self._jobs() - known, LONG, "the job is there").pop()
        wait_until(lambda: batch.job.chunks, LONG, "the job is accepted")

    def _jobs(self) -> set[str]:
        return {name.decode() for name in self.batch.store.client.zrange(keys.JOBS, 0, -1)}

    def said(self) -> str:
        return self._err.read_text()

    def wait_until_it_says(self, text: str) -> None:
        wait_until(lambda: text in self.said() or self.process.poll() is not None, LONG, f"it says {text!r}")
        assert text in self.said(), self.said()

    def finish(self) -> None:
        """See that it ends with every record's outcome, in order, and without a traceback."""
        assert self.process.wait(LONG) == 0, self.said()
        assert "Traceback" not in self.said()
        self.batch.check()
        rows = lines(self._out.read_text())
        assert [row["output"] for row in rows] == [f"LINE {number}" for number in range(self.batch.records)]


@contextlib.contextmanager
def waiting(batch: Batch, directory: Path, shell: Shell | None = None) -> Iterator[Waiting]:
    """Submit a job with `--wait`; the process is killed in the end if it is not over."""
    producer = Waiting(batch, directory, shell)
    try:
        yield producer
    finally:
        producer.process.kill()
        producer.process.wait()


def expect_each_refused(shell: Shell, batch: Batch, reason: str) -> None:
    """See that commands that begin now, one after the other, end `AT_ONCE` with one sentence that holds `reason`."""
    for command in _commands(batch):
        _expect_refused(shell, [command], reason, AT_ONCE)


def expect_refused(shell: Shell, batch: Batch, reason: str) -> None:
    """See the same of commands that begin all at once, and take the processors from each other."""
    _expect_refused(shell, _commands(batch), reason, AT_ONCE_AMONG_OTHERS)


def _commands(batch: Batch) -> list[tuple[str, ...]]:
    commands = [("jobs",), ("submit", *batch.arguments())]
    return commands + [(name, batch.id) for name in ("wait", "status", "results", "retry", "cancel")]


def _expect_refused(shell: Shell, commands: list[tuple[str, ...]], reason: str, seconds: float) -> None:
    start = time.monotonic()
    processes = [shell.popen(*command) for command in commands]
    for process in processes:
        try:
            out, err = process.communicate(timeout=LONG)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert (process.returncode, out) == (1, ""), err
        assert err.startswith("Error: Redis at 127.0.0.1:") or err.startswith("Error: Redis at redis://"), err
        assert reason in err and len(err.splitlines()) == 1, err
    assert time.monotonic() - start < seconds


def attempts(batch: Batch) -> dict[int, int]:
    """Return chunk -> how often it was leased."""
    raw = batch.store.client.hgetall(keys.JobKeys.of(batch.id).attempts)
    return {int(name.split(b":")[0]): int(times) for name, times in raw.items() if name.endswith(b":serial")}
