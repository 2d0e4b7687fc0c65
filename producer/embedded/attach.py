"""Connection to the embedded Redis: takes the locks that keep it running, and finds or starts its daemon."""

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from common.distribution import missing_worker_libraries
from common.errors import StoreUnavailable, UsageError
from common.settings import Settings, to_environ
from common.storage.atomic import write_atomic
from producer.embedded.daemon import ALREADY_RUNNING, read_kept_until
from producer.embedded.file_lock import LockFile, is_locked, is_locked_exclusively
from producer.embedded.log_files import last_error, open_log
from producer.embedded.redis_server import ServerState, probe
from producer.embedded.server_binary import ServerBinary, find_binary
from producer.embedded.state_dir import StateDir

#: Seconds to wait for a daemon that another command started, or one that is exiting.
TIMEOUT = 10.0
_POLL_SECONDS = 0.05
#: Prefixes of the variables that determine what a worker can do.
_WORKER_VARIABLES = (
    "HUGQUEUE_", "HF_", "TRANSFORMERS_", "CUDA_", "OMP_", "AWS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip


@contextlib.contextmanager
def attach(
    settings: Settings, *, with_worker: bool, notify: Callable[[str], None], keep_alive: float = 0.0
) -> Iterator[Settings]:
    """Find or start the embedded Redis; yield settings that connect to it. It runs while this context is open.

    Args:
        settings: without a Redis URL.
        with_worker: whether a worker is needed as well.
        notify: called with a message about what was started, if anything.
        keep_alive: seconds for which the worker is kept afterwards, with its loaded models.

    Raises:
        UsageError: there is no suitable redis-server, a worker's libraries are missing, or the state directory cannot
            be used.
        StoreUnavailable: Redis does not start.
    """
    if with_worker:
        _require_worker_libraries()
    state_dir = StateDir.of(settings)
    with contextlib.ExitStack() as locks:
        with _explain_os_errors(state_dir):
            state_dir.create()
            _lock(state_dir.in_use, locks)
            if with_worker:
                state_dir.worker_failure.unlink(missing_ok=True)  # that of an earlier worker
                _lock(state_dir.worker_in_use, locks)
            _find_or_start(state_dir, settings, notify, with_worker=with_worker)
        try:
            yield state_dir.apply_to(settings)
        finally:
            if with_worker and keep_alive > 0:
                _keep_worker(state_dir, time.time() + keep_alive)


class EmbeddedSession:
    """The embedded queue of one client, from `open` to `close`."""

    def __init__(
        self, settings: Settings, on_start: Callable[[str], None], notify: Callable[[str], None], keep_alive: float
    ) -> None:
        """Start nothing yet.

        Args:
            settings: Without a URL of Redis.
            on_start: Called with a sentence about what was started.
            notify: Called with a sentence when what was killed is started again.
            keep_alive: Seconds for which the worker stays after `close`.
        """
        self._settings = settings
        self._on_start = on_start
        self._notify = notify
        self._keep_alive = keep_alive
        self._attachments = contextlib.ExitStack()
        self._has_worker = False

    @property
    def keeps_worker(self) -> bool:
        """Whether the worker stays for a while after `close`."""
        return self._has_worker and self._keep_alive > 0

    def open(self, *, worker: bool) -> Settings:
        """Find or start Redis, and the worker if it is wanted; return settings with its URL.

        Raises:
            UsageError: An embedded queue cannot run here.
            StoreUnavailable: Redis does not start.
        """
        # Redis alone, for a quick look, is not worth a message.
        on_start = self._on_start if worker else lambda _: None
        context = attach(self._settings, with_worker=worker, notify=on_start, keep_alive=self._keep_alive)
        settings = self._attachments.enter_context(context)
        self._has_worker = worker
        return settings

    def start_worker(self) -> None:
        """Start the worker unless this session has one."""
        if not self._has_worker:
            self.open(worker=True)

    def ensure_running(self) -> None:
        """Start Redis and the worker again if they were killed."""
        ensure_running(self._settings, with_worker=self._has_worker, notify=self._notify)

    def close(self) -> None:
        """Stop what nobody else needs; jobs stay as they are."""
        self._attachments.close()


def _keep_worker(state_dir: StateDir, until: float) -> None:
    """Record how long to keep the worker. Call it before the lock is released, or the worker would be stopped."""
    if until > read_kept_until(state_dir):
        with contextlib.suppress(OSError):  # if the disk is full, the worker stops with this command
            write_atomic(state_dir.kept_until, str(until).encode())


def stop_kept_worker(settings: Settings) -> bool:
    """Stop an embedded worker, and its Redis, that are kept for the next command; return whether any was running.

    Raises:
        UsageError: another command is using them.
        StoreUnavailable: they do not stop.
    """
    state_dir = StateDir.of(settings)
    if not state_dir.home.is_dir() or not is_locked_exclusively(state_dir.daemon):
        return False
    if is_locked(state_dir.in_use):
        raise UsageError(f"The embedded queue in {state_dir} is in use by another command; it stops when that ends.")
    state_dir.kept_until.unlink(missing_ok=True)
    end = time.monotonic() + settings.supervisor_stop_seconds
    while is_locked_exclusively(state_dir.daemon):
        if time.monotonic() > end:
            raise StoreUnavailable(f"The embedded queue in {state_dir} does not stop; see {state_dir.daemon_log}")
        time.sleep(_POLL_SECONDS)
    return True


def stop_outdated_worker(settings: Settings) -> bool:
    """Stop a kept worker that was started with other variables: it would not see a token or a flag set since.

    Returns:
        Whether one was stopped; a worker that another command uses keeps running.

    Raises:
        StoreUnavailable: it does not stop.
    """
    state_dir = StateDir.of(settings)
    try:
        outdated = state_dir.environment.read_text() != _digest(_daemon_environ(state_dir, settings))
        return outdated and stop_kept_worker(settings)
    except (OSError, UsageError):
        return False


def ensure_running(settings: Settings, *, with_worker: bool, notify: Callable[[str], None]) -> None:
    """Start another daemon if the one of this attached process was killed, which also ends its Redis.

    Raises:
        StoreUnavailable: it was stopped on request, or no other one starts.
    """
    state_dir = StateDir.of(settings)
    with _explain_os_errors(state_dir):
        if is_locked_exclusively(state_dir.daemon):
            return
        if not state_dir.daemon.read_text():
            raise StoreUnavailable(f"The embedded Redis in {state_dir} was stopped.")
        notify("The embedded Redis was killed; starting it again.")
        _find_or_start(state_dir, settings, notify, with_worker=with_worker)


def check_embedded(settings: Settings) -> None:
    """Check that an embedded Redis and worker could be started, without starting or writing anything.

    Raises:
        UsageError: there is no suitable redis-server, or a worker's libraries are missing.
    """
    _require_worker_libraries()
    find_binary(StateDir.of(settings))


def _require_worker_libraries() -> None:
    if needs := missing_worker_libraries():
        raise UsageError(
            f"No Redis is configured, and the embedded worker needs {needs}, "
            "or set REDIS_URL to a Redis that workers serve."
        )


@contextlib.contextmanager
def _explain_os_errors(state_dir: StateDir) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"The state directory {state_dir} cannot be used: {error}. Set HUGQUEUE_HOME to another one."
        ) from error


def _lock(path: Path, locks: contextlib.ExitStack) -> None:
    """Share the lock. A daemon holds it exclusively for a moment to test whether it is free, and while it exits."""
    lock = locks.enter_context(LockFile(path))
    lock.touch()
    if not lock.lock_shared(TIMEOUT):
        raise StoreUnavailable(
            f"The embedded Redis has been stopping for more than {TIMEOUT:.0f} s: {path} is still locked."
        )


def _find_or_start(
    state_dir: StateDir, settings: Settings, notify: Callable[[str], None], *, with_worker: bool
) -> None:
    end = time.monotonic() + TIMEOUT
    while (state := _server_state(state_dir)) is not ServerState.READY:
        if state is ServerState.LOADING:
            end = time.monotonic() + TIMEOUT
        elif not is_locked_exclusively(state_dir.daemon) and (binary := _start_daemon(state_dir, settings)):
            notify(f"started an embedded Redis ({binary.release}) in {state_dir}; log: {state_dir.daemon_log}")
            if with_worker:
                notify(f"starting a worker; log: {state_dir.worker_log}")
            return
        if time.monotonic() > end:
            raise StoreUnavailable(
                f"The embedded Redis in {state_dir} does not answer. The last error in {state_dir.daemon_log}: "
                f"{last_error(state_dir.daemon_log)}"
            )
        time.sleep(_POLL_SECONDS)


def _server_state(state_dir: StateDir) -> ServerState:
    """Probe Redis; without its daemon it counts as down."""
    state = probe(state_dir.url)
    return state if is_locked_exclusively(state_dir.daemon) else ServerState.DOWN


def _daemon_environ(state_dir: StateDir, settings: Settings) -> dict[str, str]:
    """Return the environment of a daemon, and so of its worker."""
    return {**os.environ, **to_environ(dataclasses.replace(settings, broker_url=None, home=state_dir.home))}


def _digest(environ: Mapping[str, str]) -> str:
    found = sorted((name, value) for name, value in environ.items() if name.upper().startswith(_WORKER_VARIABLES))
    return hashlib.sha256(json.dumps([sys.executable, found]).encode()).hexdigest()


def _start_daemon(state_dir: StateDir, settings: Settings) -> ServerBinary | None:
    """Start a daemon; return the server that it runs, or None if another daemon was started at the same moment."""
    binary = find_binary(state_dir)  # here as well, so that this command reports a missing server
    environ = _daemon_environ(state_dir, settings)
    log = open_log(state_dir.daemon_log)
    log_start = os.fstat(log).st_size
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "producer.embedded.daemon"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(log)
    if done.returncode == ALREADY_RUNNING:
        return None
    if done.returncode:
        reason = last_error(state_dir.daemon_log, log_start)
        raise StoreUnavailable(f"The embedded Redis could not start: {reason} (log: {state_dir.daemon_log})")
    state_dir.environment.write_text(_digest(environ))
    return binary
