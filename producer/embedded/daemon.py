"""The keeper: the process that owns the embedded Redis and its worker, for as long as a command holds a lock.

Started by the first command that needs it, `python -P -m producer.embedded.daemon` goes into the background once
Redis answers. It looks at locks on files, not at processes: a command that is killed drops its locks too.

Exit status of the foreground: 0 Redis answers; `TAKEN` another keeper is there; 1 the log says why not.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from typing import NoReturn

from common.errors import HugqueueError
from common.logs import configure_logging
from common.settings import Settings, load_settings
from producer.embedded.file_lock import LockFile, is_locked
from producer.embedded.redis_server import RedisServer
from producer.embedded.server_binary import find_binary
from producer.embedded.state_dir import StateDir
from producer.embedded.worker import Worker

logger = logging.getLogger(__name__)

#: Exit status when another keeper is there (EX_TEMPFAIL of sysexits.h).
ALREADY_RUNNING = 75
#: Seconds to wait for the lock of a keeper that is just ending.
_LOCK_TIMEOUT = 0.3
#: Seconds between two looks at the locks.
_TICK = 0.1


class Daemon:
    """Keeps Redis while it is in use and a worker while there is work."""

    def __init__(self, state_dir: StateDir, settings: Settings, server: RedisServer) -> None:
        self._state_dir = state_dir
        self._server = server
        self._worker = Worker(state_dir, settings, server.client)
        self._stopping = False

    def run(self, in_use: LockFile) -> bool:
        """Return True when nobody needs Redis any more (`in_use` is then claimed: newcomers wait), False after SIGTERM.

        Raises:
            StoreUnavailable: redis-server ended, and does not start again.
        """
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        try:
            while not self._stopping:
                self._server.restart_if_ended()
                self._reconcile_worker()
                if not self._worker.is_running and in_use.lock_exclusive():
                    return True
                time.sleep(_TICK)
            return False
        finally:
            self._worker.end()

    def _reconcile_worker(self) -> None:
        wanted = is_locked(self._state_dir.working) or (
            self._worker.is_running and time.time() < kept_until(self._state_dir)
        )
        self._worker.reconcile(wanted=wanted, call=self._state_dir.working.stat().st_mtime_ns)

    def _ask_to_stop(self, *_: object) -> None:
        self._stopping = True


def kept_until(state_dir: StateDir) -> float:
    """Return until when a worker that runs is to stay, in seconds since the epoch; 0 where nobody has said so."""
    try:
        return float(state_dir.kept.read_text())
    except (OSError, ValueError):
        return 0.0


def main() -> int:
    """Run a keeper; return the exit status."""
    configure_logging()
    settings = load_settings()
    state_dir = StateDir.of(settings)
    with LockFile(state_dir.keeper) as lock:
        if not lock.lock_exclusive(_LOCK_TIMEOUT):
            return ALREADY_RUNNING
        ready = _go_into_background()
        lock.write(str(os.getpid()))
        try:
            _keep(state_dir, settings, ready)
        except HugqueueError as error:
            logger.error("%s", error)
            return 1
        lock.write("")  # its id stays there if it is killed: whoever waits for Redis starts another one then
    return 0


def _keep(state_dir: StateDir, settings: Settings, ready: int) -> None:
    # The order matters: Redis is gone and the data are whole before the lock that newcomers wait for is free.
    with contextlib.ExitStack() as stack:
        in_use = stack.enter_context(LockFile(state_dir.in_use))
        binary = find_binary(state_dir)
        server = RedisServer(state_dir, binary)
        stack.callback(server.stop)
        logger.info("started %s at %s", binary.release, state_dir.socket)
        os.write(ready, b"1")
        os.close(ready)
        if Daemon(state_dir, settings, server).run(in_use):
            logger.info("nobody needs Redis any more; stopping it")
            server.discard_if_empty()


def _go_into_background() -> int:
    """Split in two: the one that returns works on; the other ends when this one writes to the pipe, or dies."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        _end_with(0 if os.read(reading, 1) else 1)
    os.close(reading)
    return writing


def _end_with(status: int) -> NoReturn:
    # Not sys.exit: what is open here belongs to the other half now.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
