"""For tests of the command line: a queue that tests share, a terminal, and a Python without some packages."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.queue.heartbeats import live_workers
from tests.support.processes import ROOT, RedisServer, Shell, Workers, command_server, environment, wait_until


class Queue(Shell):
    """`producer` on a redis-server of its own that a worker serves."""

    def __init__(self, directory: Path, server: RedisServer, environ: Mapping[str, str]) -> None:
        super().__init__(environ, directory)
        self.server = server

    def write(self, name: str, *texts: str) -> str:
        """Write an input, a text a line; return its path."""
        path = self.directory / name
        path.write_text("".join(f"{text}\n" for text in texts))
        return str(path)


@contextmanager
def running_queue(directory: Path, *arguments: str, **more: str) -> Iterator[Queue]:
    """Run a redis-server and `workers start` with `arguments` as long as the block lasts."""
    server = RedisServer(directory / "redis").start()
    environ = environment(directory, server.url, HUGQUEUE_RENEW="0.3", HUGQUEUE_REAP="0.5", **more)
    workers = Workers(environ, directory / "workers.log", *arguments).start()
    try:
        wait_until(
            lambda: [beat for beat in live_workers(server.client) if beat.state == "ready"], 60, "a worker is ready"
        )
        yield Queue(directory, server, environ)
    finally:
        workers.kill()
        server.kill()


class Terminal:
    """A command on a terminal of its own, by default 120 columns wide."""

    def __init__(self, shell: Shell, *arguments: str, columns: int = 120) -> None:
        self._screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._process = command_server().popen(
            "producer.cli",
            *arguments,
            env=shell.environ | {"TERM": "xterm"},
            cwd=shell.directory,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)

    def read_until(self, word: str) -> None:
        """Wait until the word is shown."""
        shown = b""
        while word.encode() not in shown:
            shown += os.read(self._screen, 65536)

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(10)
        os.close(self._screen)
        return status

    def text(self) -> str:
        """Return all that was shown, and wait for the end."""
        shown = b""
        while True:
            try:
                shown += os.read(self._screen, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
        os.close(self._screen)
        assert self._process.wait(10) == 0, shown.decode()
        return shown.decode()


def python_without(
    packages: tuple[str, ...], directory: Path, environ: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a Python that has not these packages."""
    links = directory / "packages"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.partition("-")[0] not in packages:
            (links / entry.name).symlink_to(entry)
    return [sys.executable, "-S", "-P"], {**environ, "PYTHONPATH": f"{links}:{ROOT}"}  # -S: without its own packages


def run_without(
    packages: tuple[str, ...], directory: Path, environ: Mapping[str, str], *arguments: str, status: int = 2
) -> str:
    """Run `producer` in a Python that has not these packages, which must end with `status`; return what it says."""
    python, environ = python_without(packages, directory, environ)
    done = subprocess.run(
        [*python, "-m", "producer.cli", *arguments],
        env=environ,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert status != 2 or done.stdout == ""
    return done.stderr + done.stdout
