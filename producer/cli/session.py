"""Client session of a command: opens the queue, and keeps the embedded worker for the next command."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.errors import UnknownJob
from common.storage.locations import MayOpen, any_location
from producer.cli.terminal import notify

if TYPE_CHECKING:
    from producer.client import Client

#: Seconds for which the embedded worker is kept for the next command on a terminal.
_KEEP_ALIVE_SECONDS = 300.0


@contextlib.contextmanager
def open_client(
    *,
    with_worker: bool = False,
    replace_outdated: bool = False,
    keep_alive: str | None = None,
    may_open: MayOpen = any_location,
) -> "Iterator[Client]":
    """Yield a client of the configured Redis, or of an embedded one.

    Args:
        with_worker: start a worker if Redis is embedded; a configured Redis has its own.
        replace_outdated: replace a kept worker that was started with other settings.
        keep_alive: how long the embedded worker is kept afterwards; None for a few minutes on a terminal.
        may_open: which of the paths and URLs in its arguments the client may open.
    """
    from common.durations import format_span, parse_duration
    from producer.client import Client

    if keep_alive is not None:
        seconds = parse_duration(keep_alive, "--keep-alive")
    else:
        seconds = _KEEP_ALIVE_SECONDS if sys.stdin and sys.stdin.isatty() and sys.stderr.isatty() else 0.0
    if replace_outdated:
        _stop_outdated_worker()
    with Client(with_worker=with_worker, keep_alive=seconds, notify=notify, may_open=may_open) as client:
        try:
            yield client
        except UnknownJob:
            if client.embedded:
                notify("REDIS_URL is not set: searched only the embedded Redis.")
            raise
        finally:
            if client.keeps_worker:
                notify(f"The worker keeps running for {format_span(seconds)}; `producer down` stops it.")


def _stop_outdated_worker() -> None:
    from common.settings import load_settings

    settings = load_settings()
    if not settings.embedded:
        return
    from producer.embedded.attach import stop_outdated_worker

    if stop_outdated_worker(settings):
        notify("stopped the kept worker, which had other settings")
