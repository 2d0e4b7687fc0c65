"""Real processes for tests: a redis-server, workers, the command line; and waiting for conditions."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import redis

from producer.embedded.server_binary import bundled_servers
from tests.support.command_server import CommandServer

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
DEMO_MODEL = ROOT / "examples" / "models" / "demo-fill-mask"


def wait_until(condition: Callable[[], T], seconds: float = 60.0, what: str = "") -> T:
    """Return what `condition` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not true within {seconds:.0f} s: {what or condition}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def redis_binary() -> str:
    """The server that the embedded Redis runs on."""
    [path] = bundled_servers()
    return str(path)


class RedisServer:
    """A Redis (Valkey, as bundled) with an append-only file, which can be killed, frozen and started again."""

    def __init__(
        self, directory: Path, *options: str, binary: str | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.binary = binary or redis_binary()
        self.environ = {**os.environ, **(environ or {})}
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self._as_started: object = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> "RedisServer":
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes"]
        command += ["--save", "", "--dir", str(self.directory), *self.options]
        with (self.directory / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self.answers, 20, "redis-server answers")
        if not self.options:
            self._as_started = self._configuration()
        return self

    def _configuration(self) -> object:
        assert self.process
        return self.process.pid, self.client.config_get(), self.client.acl_list()

    def reset(self) -> bool:
        """Empty the server and return True; return False where it was signalled, or configured otherwise."""
        try:
            if self._as_started is None or self._configuration() != self._as_started:
                return False
            self.client.flushall()
            return bool(self.client.config_resetstat())
        except redis.RedisError:
            return False

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def signal(self, number: int) -> None:
        assert self.process
        self._as_started = None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process:
            self._as_started = None
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


def environment(home: Path, url: str | None = None, **more: str) -> dict[str, str]:
    """A clean environment: nothing of the tester's own queue, the test runners installed, one thread."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HUGQUEUE_", "CELERY_", "REDIS_", "HF_", "FLOWER_"))
    }
    kept |= {
        "HUGQUEUE_HOME": str(home / "hugqueue"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hf"),
        "NO_COLOR": "1",
    }
    if url:
        kept["REDIS_URL"] = url
    return kept | more


@functools.cache
def command_server() -> CommandServer:
    """The server that the tests of this process share."""
    return CommandServer(environment(Path("/nonexistent")))


class Workers:
    """`workers start` with its children."""

    def __init__(self, environ: Mapping[str, str], log: Path, *arguments: str, before: Sequence[str] = ()) -> None:
        self.environ = environ
        self.log = log
        self.before = before
        self.arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Workers":
        command = ["workers.cli", "start", "--device", "cpu", *self.arguments]
        options = {"env": self.environ, "stdin": subprocess.DEVNULL, "start_new_session": True}
        with self.log.open("ab") as log:
            options |= {"stdout": log, "stderr": log}
            if self.before:
                self.process = subprocess.Popen([*self.before, sys.executable, "-P", "-m", *command], **options)
            else:
                self.process = command_server().popen(*command, **options)
        return self

    def processes(self) -> list[psutil.Process]:
        """The supervisor and all below it."""
        assert self.process
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def celery(self) -> psutil.Process:
        """The Celery process."""
        return wait_until(lambda: self._find("workers.app"), 30, "a Celery process")

    def device(self) -> psutil.Process:
        """The device process."""
        return wait_until(lambda: self._find("workers.device.server"), 30, "a device process")

    def _find(self, word: str) -> psutil.Process | None:
        for process in self.processes():
            try:
                if word in process.cmdline():
                    return process
            except psutil.Error:
                continue
        return None

    def stop(self, seconds: float = 60) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(seconds)

    def kill_parts(self, *parts: str) -> None:
        """SIGKILL of `device`, of `celery`, or of both at one blow; what supervises them lives."""
        victims = [{"device": self.device, "celery": self.celery}[part]() for part in parts]
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, 30)

    def kill(self) -> None:
        """SIGKILL of everything."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if self.process:
            self.process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Shell:
    """Runs `producer` as a user's shell would."""

    def __init__(self, environ: Mapping[str, str], directory: Path) -> None:
        self.environ = dict(environ)
        self.directory = directory

    def popen(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        options = streams | {"env": self.environ, "cwd": self.directory, "text": True} | options
        return command_server().popen("producer.cli", *arguments, **options)

    def run(
        self, *arguments: str, status: int | None = 0, input: str | bytes | None = None, seconds: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        data = input.encode() if isinstance(input, str) else input
        with self.popen(*arguments, stdin=subprocess.PIPE, text=False) as done:
            try:
                out, err = (found.decode() for found in done.communicate(data, seconds))
            except BaseException:
                done.kill()
                raise
        if status is not None:
            found = f"exit status {done.returncode}, expected {status}"
            assert done.returncode == status, f"{found}\n{out[-3000:]}\n{err[-3000:]}"
        assert "Traceback" not in err, err[-3000:]
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def submit(self, *arguments: str) -> str:
        """Submit without waiting; return the job's id."""
        return self.run("submit", *arguments).stdout.strip()

    def status(self, job: str) -> dict[str, Any]:
        return json.loads(self.run("status", job, "--json").stdout)

    def results(self, job: str) -> list[dict[str, Any]]:
        return lines(self.run("results", job).stdout)


def lines(text: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]
