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

from common.distribution import worker_needs
from common.errors import StoreUnavailable, UsageError
from common.settings import Settings, to_environ
from producer.embedded.daemon import TAKEN, kept_until
from producer.embedded.file_lock import LockFile, is_claimed, is_held
from producer.embedded.log_files import open_log, reason_in
from producer.embedded.probe import Answer, probe
from producer.embedded.server_binary import Binary, find_binary
from producer.embedded.state_dir import Place

#: Seconds to wait for a keeper that another command started, or one that is ending.
PATIENCE = 10.0
_PAUSE = 0.05
#: How the names of variables begin that decide what a worker can do.
_DECIDING = ("HUGQUEUE_", "HF_", "TRANSFORMERS_", "CUDA_", "OMP_", "AWS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@contextlib.contextmanager
def attach(
    settings: Settings, *, working: bool, say: Callable[[str], None], keep_alive: float = 0.0
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
    place = Place.of(settings)
    with contextlib.ExitStack() as locks:
        with _unusable(place):
            place.prepare()
            _hold(place.in_use, locks)
            if working:
                place.worker_failure.unlink(missing_ok=True)  # that of an earlier worker
                _hold(place.working, locks)
            _find_or_start(place, settings, say, working=working)
        try:
            yield place.reached_by(settings)
        finally:
            if working and keep_alive > 0:
                _keep_worker(place, time.time() + keep_alive)


def _keep_worker(place: Place, until: float) -> None:
    """Note how long the worker stays: before the lock is let go, or it would be stopped."""
    if until > kept_until(place):
        aside = place.kept.with_name(f"{place.kept.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # without room for the note, it ends with this command
            aside.write_text(str(until))
            aside.replace(place.kept)


def end_kept_worker(settings: Settings) -> bool:
    """Stop an embedded worker, and its Redis, that are kept for the next command; return whether any ran.

    Raises:
        UsageError: a command uses them at present.
        StoreUnavailable: they do not stop.
    """
    place = Place.of(settings)
    if not place.home.is_dir() or not is_claimed(place.keeper):
        return False
    if is_held(place.in_use):
        raise UsageError(f"The embedded queue in {place} is in use by another command; it stops when that ends.")
    place.kept.unlink(missing_ok=True)
    end = time.monotonic() + settings.workers_stop
    while is_claimed(place.keeper):
        if time.monotonic() > end:
            raise StoreUnavailable(f"The embedded queue in {place} does not stop; its log: {place.keeper_log}")
        time.sleep(_PAUSE)
    return True


def end_outdated_worker(settings: Settings) -> bool:
    """Stop a kept worker that was started with other variables: it would not see a token or a flag set since.

    Returns:
        Whether there was one; one that a command uses is left to it.

    Raises:
        StoreUnavailable: it does not stop.
    """
    place = Place.of(settings)
    try:
        outdated = place.environment.read_text() != _digest(_keeper_environ(place, settings))
        return outdated and end_kept_worker(settings)
    except (OSError, UsageError):
        return False


def revive(settings: Settings, *, working: bool, say: Callable[[str], None]) -> None:
    """See that there is a keeper, for who is attached: one that was killed, and took Redis with it, is replaced.

    Raises:
        StoreUnavailable: it was asked to stop, or no other one starts.
    """
    place = Place.of(settings)
    with _unusable(place):
        if is_claimed(place.keeper):
            return
        if not place.keeper.read_text():
            raise StoreUnavailable(f"The embedded Redis in {place} was stopped.")
        say("The embedded Redis was killed; starting it again.")
        _find_or_start(place, settings, say, working=working)


def check_embedded(settings: Settings) -> None:
    """Check that an embedded Redis and worker could be started, without starting or writing anything.

    Raises:
        UsageError: no redis-server, none that may be used here, or no worker's libraries.
    """
    _require_worker()
    find_binary(Place.of(settings))


def _require_worker() -> None:
    if needs := worker_needs():
        raise UsageError(
            f"No Redis is configured, and a worker of one's own needs {needs}, "
            "or set REDIS_URL to a Redis that workers serve."
        )


@contextlib.contextmanager
def _unusable(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"The state directory {place} cannot be used: {error}. Name another with HUGQUEUE_HOME."
        ) from error


def _hold(path: Path, locks: contextlib.ExitStack) -> None:
    """Share the lock, which a keeper claims for a moment to see whether anybody holds it, and while it ends."""
    lock = locks.enter_context(LockFile(path))
    lock.touch()
    if not lock.share(PATIENCE):
        raise StoreUnavailable(
            f"The embedded Redis is being stopped, for more than {PATIENCE:.0f} s now: {path} is held."
        )


def _find_or_start(place: Place, settings: Settings, say: Callable[[str], None], *, working: bool) -> None:
    end = time.monotonic() + PATIENCE
    while (answer := _look(place)) is not Answer.READY:
        if answer is Answer.LOADING:
            end = time.monotonic() + PATIENCE
        elif not is_claimed(place.keeper) and (binary := _start(place, settings)):
            say(f"started an embedded Redis ({binary.release}) in {place}; log: {place.keeper_log}")
            if working:
                say(f"starting a worker of its own; log: {place.worker_log}")
            return
        if time.monotonic() > end:
            raise StoreUnavailable(
                f"The embedded Redis in {place} does not answer. Its log, {place.keeper_log}, ends with: "
                f"{reason_in(place.keeper_log)}"
            )
        time.sleep(_PAUSE)


def _look(place: Place) -> Answer:
    """Return how Redis answers; one without its keeper does not count."""
    answer = probe(place.url)
    return answer if answer is Answer.AWAY or is_claimed(place.keeper) else Answer.AWAY


def _keeper_environ(place: Place, settings: Settings) -> dict[str, str]:
    """Return the variables of a keeper, and so of its worker."""
    return {**os.environ, **to_environ(dataclasses.replace(settings, broker_url=None, home=place.home))}


def _digest(environ: Mapping[str, str]) -> str:
    found = sorted((name, value) for name, value in environ.items() if name.upper().startswith(_DECIDING))
    return hashlib.sha256(json.dumps([sys.executable, found]).encode()).hexdigest()


def _start(place: Place, settings: Settings) -> Binary | None:
    """Start a keeper; return the server it keeps, None if another keeper was started at the same moment."""
    binary = find_binary(place)  # here as well, so that what is missing is this command's error
    environ = _keeper_environ(place, settings)
    log = open_log(place.keeper_log)
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
    if done.returncode not in (0, TAKEN):
        reason = reason_in(place.keeper_log, log_start)
        raise StoreUnavailable(f"The embedded Redis could not start: {reason} (the keeper's log: {place.keeper_log})")
    if done.returncode == TAKEN:
        return None
    place.environment.write_text(_digest(environ))
    return binary
