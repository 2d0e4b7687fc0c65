"""Server process of the embedded Redis: starting, probing and stopping it."""

import contextlib
import logging
import os
import shutil
import subprocess
import time
from enum import Enum
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.errors import StoreUnavailable
from common.processes import die_with_parent
from common.redis.client import client_url, connect
from producer.embedded.file_lock import LockFile
from producer.embedded.log_files import last_error, open_log
from producer.embedded.server_binary import ServerBinary, record_release
from producer.embedded.state_dir import StateDir

logger = logging.getLogger(__name__)

#: Seconds without an answer after which starting or stopping a server is given up.
TIMEOUT = 9.0
#: Seconds to wait for the answer to one probe.
_PROBE_TIMEOUT = 2.0
_POLL_SECONDS = 0.02


class ServerState(Enum):
    """Result of probing Redis."""

    DOWN = "down"
    LOADING = "loading"  # it is running and reads its data
    READY = "ready"


def probe(url: str) -> ServerState:
    """Ping Redis at `url` once, without a retry."""
    client = redis.Redis.from_url(
        client_url(url),
        socket_timeout=_PROBE_TIMEOUT,
        socket_connect_timeout=_PROBE_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()
        return ServerState.READY
    except redis.exceptions.BusyLoadingError:
        return ServerState.LOADING
    except redis.RedisError:
        return ServerState.DOWN
    finally:
        client.close()


class RedisServer:
    """A running redis-server. It exits with this process, even if this process is killed (on Linux).

    Raises:
        StoreUnavailable: it does not start, or an earlier one does not stop.
    """

    def __init__(self, state_dir: StateDir, binary: ServerBinary) -> None:
        self._state_dir = state_dir
        self._binary = binary
        self.client = connect(state_dir.url)
        self._process = self._start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> "subprocess.Popen[bytes]":
        with contextlib.ExitStack() as stack:
            # The server inherits this lock and holds it until it exits: no two servers ever write the same file.
            lock = stack.enter_context(LockFile(self._state_dir.server))
            if not lock.lock_exclusive():
                self._stop_earlier(lock)
            record_release(self._state_dir, self._binary.release)
            log = open_log(self._state_dir.server_log)
            stack.callback(os.close, log)
            return subprocess.Popen(
                _command(self._binary.path, self._state_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._state_dir.data,
                umask=0o077,
                pass_fds=(lock.fileno(),),
                # Safe: the daemon has one thread.
                preexec_fn=die_with_parent(),  # noqa: PLW1509
                start_new_session=True,
            )

    def _stop_earlier(self, lock: LockFile) -> None:
        """Stop the server of a killed daemon, on systems that do not end children with their parent."""
        logger.warning("an earlier redis-server is still running; stopping it")
        with contextlib.suppress(redis.RedisError):
            self.client.shutdown()
        if not lock.lock_exclusive(TIMEOUT):
            raise StoreUnavailable(
                f"An earlier redis-server at {self._state_dir.socket} does not stop; kill it and try again."
            )

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + TIMEOUT
        log = self._state_dir.server_log
        while (state := probe(self._state_dir.url)) is not ServerState.READY:
            if self._process.poll() is not None:
                raise StoreUnavailable(
                    f"redis-server exited with status {self._process.returncode}: {last_error(log)} (log: {log})"
                )
            if state is ServerState.LOADING:
                end = time.monotonic() + TIMEOUT
            if time.monotonic() > end:
                raise StoreUnavailable(f"redis-server does not answer (log: {log})")
            time.sleep(_POLL_SECONDS)

    def restart_if_ended(self) -> None:
        """Start the server again if it exited.

        Raises:
            StoreUnavailable: it does not start.
        """
        if self._process.poll() is not None:
            logger.error("redis-server exited with status %d; starting it again", self._process.returncode)
            self._process = self._start()
            self._wait_until_ready()

    def stop(self) -> None:
        """Stop the server; its data are on disk when this returns."""
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._state_dir.socket.unlink(missing_ok=True)

    def stop_and_discard_if_empty(self) -> None:
        """Stop the server and delete its files if there are no keys, so that any other server may be used next.

        Only if nobody writes any more.
        """
        try:
            empty = not self.client.info("keyspace")
        except redis.RedisError:
            empty = False
        self.stop()
        if empty:
            # The version goes last: files without it would be taken for those of any server.
            for path in sorted(self._state_dir.data.iterdir(), key=self._state_dir.version.__eq__):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _command(path: Path, state_dir: StateDir) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(state_dir.socket),
        "unixsocketperm": "700",
        "dir": str(state_dir.data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(path), *(word for name, value in options.items() for word in (f"--{name}", value))]
