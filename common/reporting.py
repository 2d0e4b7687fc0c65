"""Progress reports and cancellation of long work."""

import threading
from collections.abc import Mapping

from common.errors import Cancelled
from common.records import Json


class Reporter:
    """Receives what long work reports. This base ignores all of it; subclasses override what they care about.

    Every method may raise `Cancelled`, which ends the work.
    """

    def stage(self, text: str) -> None:
        """Report a preparatory step that takes time ("downloading ..."); an empty text says that it is over."""

    def progress(self, values: Mapping[str, Json]) -> None:
        """Report how far the work has come, for example `{"step": 20, "loss": 0.3}`."""

    def warning(self, text: str) -> None:
        """Report something wrong that does not stop the work."""


class CancelToken:
    """Asks work to stop. Any thread may cancel it; the first reason is kept."""

    def __init__(self) -> None:
        self.reason = ""
        self._event = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether the work is to stop."""
        return self._event.is_set()

    def cancel(self, reason: str = "cancelled") -> None:
        """Ask the work to stop."""
        if not self.is_cancelled:
            self.reason = reason
            self._event.set()

    def wait(self, seconds: float) -> bool:
        """Wait `seconds`, or until it is cancelled; return whether it is."""
        return self._event.wait(seconds)

    def check(self) -> None:
        """Raise `Cancelled` once the work is to stop."""
        if self.is_cancelled:
            raise Cancelled(self.reason)
