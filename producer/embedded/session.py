"""A client's use of the embedded queue: Redis and the worker stay while it is open, and are restarted if killed."""

from collections.abc import Callable
from contextlib import ExitStack

from common.settings import Settings
from producer.embedded.attach import attach, ensure_running


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
        self._attachments = ExitStack()
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
