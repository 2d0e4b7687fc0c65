"""How commands reach the queue."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.errors import UnknownJob
from producer.cli.terminal import notify

if TYPE_CHECKING:
    from producer.client import Client


#: Seconds for which the embedded worker waits for the next command of a person.
_KEEP_ALIVE = 300.0


def _default_keep_alive() -> float:
    return _KEEP_ALIVE if sys.stdin and sys.stdin.isatty() and sys.stderr.isatty() else 0.0


@contextlib.contextmanager
def open_client(
    *, working: bool = False, replace_outdated: bool = False, keep_alive: str | None = None
) -> "Iterator[Client]":
    """Yield a client of the configured queue, or of an embedded one.

    Args:
        working: whether an embedded queue needs its worker; a configured one has its own.
        renewing: whether a worker that was kept is replaced where it was started with other settings.
        keep_alive: for how long that worker stays afterwards; None: for some minutes if somebody sits at a terminal.
    """
    from common.durations import parse_duration, write_duration
    from producer.client import Client

    seconds = _default_keep_alive() if keep_alive is None else parse_duration(keep_alive, "--keep-alive")
    if replace_outdated:
        _stop_outdated_worker()
    with Client(working=working, keep_alive=seconds, notify=notify) as client:
        try:
            try:
                yield client
            finally:
                if client.keeps_worker:
                    notify(
                        f"The worker stays for {write_duration(seconds)}, its model loaded; `producer down` ends it."
                    )
        except UnknownJob:
            if client.embedded:
                notify("REDIS_URL is not set: looked in the embedded Redis alone.")
            raise


def _stop_outdated_worker() -> None:
    from common.settings import load_settings
    from producer.embedded.attach import stop_outdated_worker

    settings = load_settings()
    if settings.embedded and stop_outdated_worker(settings):
        notify("stopped the worker that was kept: it had other settings")
