"""How a command comes to the embedded Redis: it takes the locks that keep it alive and finds or starts its keeper."""

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
from producer.embedded.daemon import ALREADY_RUNNING, kept_until
from producer.embedded.file_lock import LockFile, is_locked, is_locked_exclusively
from producer.embedded.log_files import last_error, open_log
from producer.embedded.probe import ServerState, probe
from producer.embedded.server_binary import ServerBinary, find_binary
from producer.embedded.state_dir import StateDir

#: Seconds to wait for a keeper that another command started, or one that is ending.
PATIENCE = 10.0
_PAUSE = 0.05
#: How the names of variables begin that decide what a worker can do.
_DECIDING = ("HUGQUEUE_", "HF_", "TRANSFORMERS_", "CUDA_", "OMP_", "AWS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@contextlib.contextmanager
def attach(
    settings: Settings, *, working: bool, notify: Callable[[str], None], keep_alive: float = 0.0
) -> Iterator[Settings]:
    """Find or start the embedded Redis; yield settings that lead to it. It stays while this context is open.

    Args:
        settings: without a Redis.
        working: whether a worker is wanted as well.
        say: told what was started, if it was started for this command.
        keep_alive: for how many seconds the worker is to stay afterwards, with the models that it has.

    Raises:
        UsageError: no redis-server, none that may be used here, no worker's libraries, or no directory for the state.
        StoreUnavailable: Redis does not start.
    """
    if working:
        _require_worker()
    state_dir = StateDir.of(settings)
    with contextlib.ExitStack() as locks:
        with _unusable(state_dir):
            state_dir.prepare()
            _hold(state_dir.in_use, locks)
            if working:
                state_dir.worker_failure.unlink(missing_ok=True)  # that of an earlier worker
                _hold(state_dir.working, locks)
            _find_or_start(state_dir, settings, notify, working=working)
        try:
            yield state_dir.apply_to(settings)
        finally:
            if working and keep_alive > 0:
                _keep_worker(state_dir, time.time() + keep_alive)


def _keep_worker(state_dir: StateDir, until: float) -> None:
    """Note how long the worker stays: before the lock is let go, or it would be stopped."""
    if until > kept_until(state_dir):
        with contextlib.suppress(OSError):  # on a full disk the worker ends with this command
            write_atomic(state_dir.kept, str(until).encode())


def stop_kept_worker(settings: Settings) -> bool:
    """Stop an embedded worker, and its Redis, that are kept for the next command; return whether any ran.

    Raises:
        UsageError: a command uses them at present.
        StoreUnavailable: they do not stop.
    """
    state_dir = StateDir.of(settings)
    if not state_dir.home.is_dir() or not is_locked_exclusively(state_dir.keeper):
        return False
    if is_locked(state_dir.in_use):
        raise UsageError(f"The embedded queue in {state_dir} is in use by another command; it stops when that ends.")
    state_dir.kept.unlink(missing_ok=True)
    end = time.monotonic() + settings.workers_stop
    while is_locked_exclusively(state_dir.keeper):
        if time.monotonic() > end:
            raise StoreUnavailable(f"The embedded queue in {state_dir} does not stop; its log: {state_dir.daemon_log}")
        time.sleep(_PAUSE)
    return True


def stop_outdated_worker(settings: Settings) -> bool:
    """Stop a kept worker that was started with other variables: it would not see a token or a flag set since.

    Returns:
        Whether there was one; one that a command uses is left to it.

    Raises:
        StoreUnavailable: it does not stop.
    """
    state_dir = StateDir.of(settings)
    try:
        outdated = state_dir.environment.read_text() != _digest(_daemon_environ(state_dir, settings))
        return outdated and stop_kept_worker(settings)
    except (OSError, UsageError):
        return False


def ensure_running(settings: Settings, *, working: bool, notify: Callable[[str], None]) -> None:
    """See that there is a keeper, for who is attached: one that was killed, and took Redis with it, is replaced.

    Raises:
        StoreUnavailable: it was asked to stop, or no other one starts.
    """
    state_dir = StateDir.of(settings)
    with _unusable(state_dir):
        if is_locked_exclusively(state_dir.keeper):
            return
        if not state_dir.keeper.read_text():
            raise StoreUnavailable(f"The embedded Redis in {state_dir} was stopped.")
        notify("The embedded Redis was killed; starting it again.")
        _find_or_start(state_dir, settings, notify, working=working)


def check_embedded(settings: Settings) -> None:
    """Check that an embedded Redis and worker could be started, without starting or writing anything.

    Raises:
        UsageError: no redis-server, none that may be used here, or no worker's libraries.
    """
    _require_worker()
    find_binary(StateDir.of(settings))


def _require_worker() -> None:
    if needs := missing_worker_libraries():
        raise UsageError(
            f"No Redis is configured, and a worker of one's own needs {needs}, "
            "or set REDIS_URL to a Redis that workers serve."
        )


@contextlib.contextmanager
def _unusable(state_dir: StateDir) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"The state directory {state_dir} cannot be used: {error}. Name another with HUGQUEUE_HOME."
        ) from error


def _hold(path: Path, locks: contextlib.ExitStack) -> None:
    """Share the lock, which a keeper claims for a moment to see whether anybody holds it, and while it ends."""
    lock = locks.enter_context(LockFile(path))
    lock.touch()
    if not lock.lock_shared(PATIENCE):
        raise StoreUnavailable(
            f"The embedded Redis is being stopped, for more than {PATIENCE:.0f} s now: {path} is held."
        )


def _find_or_start(state_dir: StateDir, settings: Settings, notify: Callable[[str], None], *, working: bool) -> None:
    end = time.monotonic() + PATIENCE
    while (state := _look(state_dir)) is not ServerState.READY:
        if state is ServerState.LOADING:
            end = time.monotonic() + PATIENCE
        elif not is_locked_exclusively(state_dir.keeper) and (binary := _start(state_dir, settings)):
            notify(f"started an embedded Redis ({binary.release}) in {state_dir}; log: {state_dir.daemon_log}")
            if working:
                notify(f"starting a worker of its own; log: {state_dir.worker_log}")
            return
        if time.monotonic() > end:
            raise StoreUnavailable(
                f"The embedded Redis in {state_dir} does not answer. Its log, {state_dir.daemon_log}, ends with: "
                f"{last_error(state_dir.daemon_log)}"
            )
        time.sleep(_PAUSE)


def _look(state_dir: StateDir) -> ServerState:
    """Return how Redis answers; one without its keeper does not count."""
    state = probe(state_dir.url)
    return state if state is ServerState.DOWN or is_locked_exclusively(state_dir.keeper) else ServerState.DOWN


def _daemon_environ(state_dir: StateDir, settings: Settings) -> dict[str, str]:
    """Return the variables of a keeper, and so of its worker."""
    return {**os.environ, **to_environ(dataclasses.replace(settings, broker_url=None, home=state_dir.home))}


def _digest(environ: Mapping[str, str]) -> str:
    found = sorted((name, value) for name, value in environ.items() if name.upper().startswith(_DECIDING))
    return hashlib.sha256(json.dumps([sys.executable, found]).encode()).hexdigest()


def _start(state_dir: StateDir, settings: Settings) -> ServerBinary | None:
    """Start a keeper; return the server it keeps, None if another keeper was started at the same moment."""
    binary = find_binary(state_dir)  # here as well, so that what is missing is this command's error
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
    if done.returncode not in (0, ALREADY_RUNNING):
        reason = last_error(state_dir.daemon_log, log_start)
        raise StoreUnavailable(
            f"The embedded Redis could not start: {reason} (the keeper's log: {state_dir.daemon_log})"
        )
    if done.returncode == ALREADY_RUNNING:
        return None
    state_dir.environment.write_text(_digest(environ))
    return binary
