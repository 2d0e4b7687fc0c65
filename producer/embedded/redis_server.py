"""The server of the embedded Redis: starting it, and ending it. Knows not for whom."""

import contextlib
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

import redis

from common.errors import StoreUnavailable
from common.processes import die_with_parent
from common.redis.client import connect
from producer.embedded.file_lock import LockFile
from producer.embedded.log_files import last_error, open_log
from producer.embedded.probe import ServerState, probe
from producer.embedded.server_binary import ServerBinary, record_release
from producer.embedded.state_dir import StateDir

logger = logging.getLogger(__name__)

#: Seconds without any answer after which a server that starts or ends is given up.
PATIENCE = 9.0
_PAUSE = 0.02


class RedisServer:
    """A running redis-server. It ends with this process, however this process ends.

    Raises:
        StoreUnavailable: it does not start, or an earlier one does not end.
    """

    def __init__(self, state_dir: StateDir, binary: ServerBinary) -> None:
        self._state_dir = state_dir
        self._binary = binary
        self.client = connect(state_dir.url)
        self._process = self._start()
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> "subprocess.Popen[bytes]":
        with contextlib.ExitStack() as stack:
            # The server holds this lock from its first moment to its last: no two ever write the same file.
            lock = stack.enter_context(LockFile(self._state_dir.server))
            if not lock.lock_exclusive():
                self._end_earlier(lock)
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
                # Safe: the keeper has one thread.
                preexec_fn=die_with_parent(),  # noqa: PLW1509
                start_new_session=True,
            )

    def _end_earlier(self, lock: LockFile) -> None:
        """Stop the server of a keeper that was killed where the system does not end children with their parent."""
        logger.warning("an earlier redis-server is still there; stopping it")
        with contextlib.suppress(redis.RedisError):
            self.client.shutdown()
        if not lock.lock_exclusive(PATIENCE):
            raise StoreUnavailable(
                f"An earlier redis-server at {self._state_dir.socket} does not end: stop it by hand."
            )

    def _await_answer(self) -> None:
        end = time.monotonic() + PATIENCE
        while (state := probe(self._state_dir.url)) is not ServerState.READY:
            if not self.is_running():
                why = last_error(self._state_dir.server_log)
                raise StoreUnavailable(
                    f"redis-server ended with status {self._process.returncode}: {why} "
                    f"(log: {self._state_dir.server_log})"
                )
            if state is ServerState.LOADING:
                end = time.monotonic() + PATIENCE
            if time.monotonic() > end:
                raise StoreUnavailable(f"redis-server does not answer (log: {self._state_dir.server_log})")
            time.sleep(_PAUSE)

    def is_running(self) -> bool:
        """Return whether the process lives."""
        return self._process.poll() is None

    def restart_if_ended(self) -> None:
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
        self._state_dir.socket.unlink(missing_ok=True)

    def discard_if_empty(self) -> None:
        """End it; data that hold no key are removed, so that any other server may begin them anew.

        Only for who knows that nobody writes any more.
        """
        try:
            empty = not self.client.info("keyspace")
        except redis.RedisError:
            empty = False
        self.stop()
        if empty:
            # The record goes last: files without it would be taken for those of any server.
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
