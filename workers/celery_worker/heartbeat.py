"""The worker's heartbeat: one thread that writes it, and ends the worker when it is of no use any longer.

That is when what started it is gone, or when its device process cannot be kept alive.
"""

import logging
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from common.distribution import installed_version
from common.queue.heartbeats import Heartbeat, remove_heartbeat, send_heartbeat
from common.settings import Settings
from workers.celery_worker.meter import Meter
from workers.device.client.client import DeviceClient
from workers.devices import queues_of

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 3.0


class HeartbeatThread:
    """Writes the heartbeat every few seconds until it is stopped."""

    def __init__(
        self,
        name: str,
        client: "redis.Redis",
        settings: Settings,
        device: DeviceClient,
        meter: Meter,
        *,
        device_name: str,
        slots: int,
    ) -> None:
        self.state = "starting"
        self._name = name
        self._client = client
        self._settings = settings
        self._device = device
        self._meter = meter
        self._slots = slots
        self._parent = settings.supervised
        self._exiting_since: float | None = None
        self._started = time.time()
        self._device_name = device_name
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin at once."""
        self._thread.start()

    def set_state(self, state: str) -> None:
        """Tell at once that the worker is `ready` or `stopping`."""
        self.state = state
        self._wake.set()

    def stop(self) -> None:
        """End, and take the worker off the list."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        try:
            remove_heartbeat(self._client, self._name)
        except redis.RedisError as error:
            logger.info("heartbeat not taken back, it runs out: %s", error)

    def _run(self) -> None:
        while True:
            try:
                send_heartbeat(self._client, self.now())
            except redis.RedisError as error:
                logger.info("no heartbeat: %s", error)
            except Exception:  # the boundary: a worker without a pulse counts as dead
                logger.exception("no heartbeat")
            self._exit_if_useless()
            self._wake.wait(INTERVAL_SECONDS)
            self._wake.clear()
            if self._stopping:
                return

    def _exit_if_useless(self) -> None:
        if self._exiting_since is None:
            if reason := self._reason_to_exit():
                logger.error("this worker ends: %s", reason)
                self._exiting_since = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)
        elif time.monotonic() - self._exiting_since > self._settings.worker_stop:
            # Celery that waits for a Redis which is gone hears no SIGTERM, and nobody else is left to end it.
            os.kill(os.getpid(), signal.SIGKILL)

    def _reason_to_exit(self) -> str:
        if self._parent not in (0, os.getppid()):
            return "what started it is gone"
        # While it starts, the room tells why it cannot.
        return str(self._device.broken or "") if self.state == "ready" else ""

    def now(self) -> Heartbeat:
        """Return the worker as it is now."""
        return Heartbeat(
            name=self._name,
            device=self._settings.device,
            device_name=self._device_name,
            queues=queues_of(self._settings),
            slots=self._slots,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started,
            state=self.state,
            models=tuple(self._device.loaded),
            records_per_second=round(self._meter.rate(), 1),
            records_done=self._meter.total,
            memory_bytes=sum(_resident(pid) for pid in self._pids()),
            version=f"{installed_version('hugqueue') or 'uninstalled'} (Python {platform.python_version()})",
        )

    def _pids(self) -> Iterator[int]:
        yield os.getpid()
        if self._device.pid is not None:
            yield self._device.pid


def _resident(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 where /proc does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
