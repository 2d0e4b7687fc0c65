"""Daemon of the embedded queue: owns Redis and the worker for as long as a command holds a lock.

The first command that needs it starts `python -P -m producer.embedded.daemon`, which moves to the background once
Redis answers. The daemon watches file locks rather than processes: a command that is killed releases its locks too.

Exit status of the foreground process: 0 if Redis answers, `ALREADY_RUNNING` if there is another daemon, and 1 if it
failed, with the reason in the log.
"""

import contextlib
import logging
import os
import signal
import sys
import time

from common.errors import HugqueueError
from common.logs import configure_logging
from common.settings import Settings, load_settings
from producer.embedded.file_lock import LockFile, is_locked
from producer.embedded.redis_server import RedisServer
from producer.embedded.server_binary import find_binary
from producer.embedded.state_dir import StateDir
from producer.embedded.worker import Worker

logger = logging.getLogger(__name__)

#: Exit status if there is another daemon (EX_TEMPFAIL of sysexits.h).
ALREADY_RUNNING = 75
#: Seconds to wait for the lock of a daemon that is exiting.
_LOCK_TIMEOUT = 0.3
_POLL_SECONDS = 0.1


class Daemon:
    """Keeps Redis running while it is in use, and a worker while one is needed."""

    def __init__(self, state_dir: StateDir, settings: Settings, server: RedisServer) -> None:
        self._state_dir = state_dir
        self._server = server
        self._worker = Worker(state_dir, settings, server.client)
        self._stopping = False

    def run(self, in_use: LockFile) -> bool:
        """Return True when Redis is no longer needed, with `in_use` locked so that new commands wait; False on SIGTERM.

        Raises:
            StoreUnavailable: redis-server exited and cannot be restarted.
        """
        signal.signal(signal.SIGTERM, self._request_stop)
        try:
            while not self._stopping:
                self._server.restart_if_ended()
                self._reconcile_worker()
                if not self._worker.is_running and in_use.lock_exclusive():
                    return True
                time.sleep(_POLL_SECONDS)
            return False
        finally:
            self._worker.stop()

    def _reconcile_worker(self) -> None:
        lock = self._state_dir.worker_in_use
        wanted = is_locked(lock) or (self._worker.is_running and time.time() < read_kept_until(self._state_dir))
        self._worker.reconcile(wanted=wanted, request=lock.stat().st_mtime_ns)

    def _request_stop(self, *_: object) -> None:
        self._stopping = True


def read_kept_until(state_dir: StateDir) -> float:
    """Return until when an idle worker is kept, in seconds since the epoch; 0 if it is not."""
    try:
        return float(state_dir.kept_until.read_text())
    except (OSError, ValueError):
        return 0.0


def main() -> int:
    """Run the daemon; return the exit status."""
    configure_logging()
    settings = load_settings()
    state_dir = StateDir.of(settings)
    with LockFile(state_dir.daemon) as lock:
        if not lock.lock_exclusive(_LOCK_TIMEOUT):
            return ALREADY_RUNNING
        ready = _move_to_background()
        lock.write(str(os.getpid()))
        try:
            _serve(state_dir, settings, ready)
        except HugqueueError as error:
            logger.error("%s", error)
            return 1
        lock.write("")  # a killed daemon leaves its id there: commands that wait for Redis then start another one
    return 0


def _serve(state_dir: StateDir, settings: Settings, ready: int) -> None:
    # The order matters: Redis has exited and its data are complete before the lock that new commands wait for is free.
    with contextlib.ExitStack() as stack:
        in_use = stack.enter_context(LockFile(state_dir.in_use))
        binary = find_binary(state_dir)
        server = RedisServer(state_dir, binary)
        stack.callback(server.stop)
        logger.info("started %s at %s", binary.release, state_dir.socket)
        os.write(ready, b"1")
        os.close(ready)
        if Daemon(state_dir, settings, server).run(in_use):
            logger.info("Redis is no longer in use; stopping it")
            server.stop_and_discard_if_empty()


def _move_to_background() -> int:
    """Fork: the child returns; the parent exits when the child writes to the returned pipe, or dies."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os._exit(0 if os.read(reading, 1) else 1)  # not sys.exit: what is open here belongs to the child now
    os.close(reading)
    return writing


if __name__ == "__main__":
    sys.exit(main())
