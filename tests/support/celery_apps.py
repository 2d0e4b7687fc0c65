"""Celery apps of other programs, and the process that serves their tasks."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support.processes import wait_until

#: The command that Celery installs, as users of it type it.
CELERY = str(Path(sys.executable).parent / "celery")
CONTROL = [sys.executable, "-P", "-m", "producer.cli", "control"]


class Process:
    """A process with a log, which ends with the block."""

    def __init__(self, command: list[str], environ: Mapping[str, str], directory: Path, log: str) -> None:
        self.log = directory / log
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                env=environ,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_for(self, *words: str) -> None:
        """Wait until the log has all of these words."""
        wait_until(lambda: all(word in self.text() for word in words), 60, f"{words} in {self.log}")

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL of the process and its children, such as that of `--beat`."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@contextlib.contextmanager
def running(command: list[str], environ: Mapping[str, str], directory: Path, log: str) -> Iterator[Process]:
    """Run a command as long as the block lasts."""
    process = Process(command, environ, directory, log)
    try:
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def control(environ: Mapping[str, str], directory: Path, log: str = "control.log") -> Iterator[Process]:
    """Run `producer control` as long as the block lasts; it serves tasks when the block begins."""
    with running(CONTROL, environ, directory, log) as process:
        process.wait_for("serving tasks")
        yield process


class OtherApp:
    """An app with Celery's defaults, whose only settings are its Redis and the route to hugqueue."""

    def __init__(self, url: str, backend: str | None = None) -> None:
        self.celery = Celery("other", broker=url, backend=backend or url, set_as_current=False)
        self.celery.conf.task_routes = {"hugqueue.*": {"queue": "hugqueue.control"}}

    def send(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Send `hugqueue.NAME`."""
        return self.celery.send_task(f"hugqueue.{name}", args=arguments, kwargs=keywords)

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Send `hugqueue.NAME` and return its result."""
        return self.send(name, *arguments, **keywords).get(timeout=60)

    def signature(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        return self.celery.signature(f"hugqueue.{name}", args=arguments, kwargs=keywords)
