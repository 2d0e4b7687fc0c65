"""The HTTP server of metrics, in the text format of Prometheus."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from common.display_text import one_line
from common.errors import UsageError

#: Seconds for which an answer is good: two scrapers cost no more than one.
FRESH_SECONDS = 2.0
#: Characters of a label's value.
_MAX_LABEL = 120

Metrics: TypeAlias = Iterable[Metric]


class CachedCollector(Collector):
    """Collects what a function returns, at most once every `FRESH_SECONDS`; any thread may ask."""

    def __init__(self, read: Callable[[], Metrics]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._metrics: list[Metric] = []
        self._until = 0.0

    def collect(self) -> Metrics:
        """Return the metrics as of `FRESH_SECONDS` ago at most."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._metrics = list(self._read())
                self._until = time.monotonic() + FRESH_SECONDS
            return self._metrics


@contextlib.contextmanager
def serving_metrics(read: Callable[[], Metrics], address: str, port: int) -> Iterator[None]:
    """Serve metrics at `http://ADDRESS:PORT/metrics` as long as the block lasts.

    Args:
        read: returns the metrics; called by other threads.
        address: of this machine, at which to listen.
        port: likewise.

    Raises:
        UsageError: it is not possible to listen there.
    """
    registry = CollectorRegistry()
    registry.register(CachedCollector(read))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise UsageError(f"Metrics cannot be served at {address}:{port}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def label(text: str) -> str:
    """Return a text as the value of a label: one short line."""
    return one_line(text, _MAX_LABEL)
