"""Commands on an embedded Redis, and the processes that they leave or do not leave."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import redis

from common.redis.client import connect
from tests.support.processes import ROOT, wait_until


class Holder:
    """A process of its own that holds the embedded Redis."""

    def __init__(self, environ: Mapping[str, str], *, with_worker: bool = False) -> None:
        arguments = [
            sys.executable,
            "-P",
            str(ROOT / "tests" / "support" / "embedded_holder.py"),
            *(["with_worker"] if with_worker else []),
        ]
        self.process = subprocess.Popen(
            arguments,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._facts: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Its address of Redis and what it said; waits until it has them."""
        if self._facts is None:
            assert self.process.stdout
            self._facts = json.loads(self.process.stdout.readline())
        return self._facts

    @property
    def client(self) -> "redis.Redis":
        return connect(self.facts["url"])

    def leave(self) -> None:
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=20)


class Home:
    """A state directory and the processes that belong to it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)
        self.path = Path(environ["HUGQUEUE_HOME"])

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Living processes of this home whose command line holds `word`; commands themselves are left out."""
        return [process for process in psutil.process_iter() if self._belongs(process, word)]

    def _belongs(self, process: psutil.Process, word: str) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            line = " ".join(process.cmdline())
            # The server writes its title over its environment: it is known by its directory.
            ours = process.environ().get("HUGQUEUE_HOME") == str(self.path) or process.cwd().startswith(str(self.path))
            return ours and word in line and "embedded_holder" not in line
        except psutil.Error:
            return False

    def daemon(self) -> psutil.Process:
        """The daemon that holds the lock; another may be there for a moment, and goes away."""
        return psutil.Process(int((self.path / "daemon.lock").read_text()))

    def server(self) -> psutil.Process:
        """The one server there is."""
        [found] = self.processes("valkey-server")
        return found

    def wait_until_empty(self, word: str = "", seconds: float = 20) -> None:
        wait_until(lambda: not self.processes(word), seconds, f"no process {word} of {self.path}")

    def end(self) -> None:
        """SIGKILL of everything, after a test, and of what a daemon or a command starts again meanwhile."""

        def is_empty() -> bool:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return not self.processes()

        wait_until(is_empty, 60, f"no process of {self.path}")
