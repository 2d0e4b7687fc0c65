"""The worker's heartbeat: a thread that writes it, and ends the worker if it cannot work any more.

It cannot work if the process that started it is gone, or if its device process keeps dying.
"""

import logging
import os
import platform
import signal
import socket
import threading
import time
from collections import deque
from pathlib import Path

import redis

from common.distribution import installed_version
from common.queue.heartbeats import Heartbeat, remove_heartbeat, send_heartbeat
from common.settings import Settings
from workers.device.client.device_client import DeviceClient
from workers.device.protocol import Effort
from workers.devices import faster_dtype, queues_of

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 3.0
#: Seconds over which the rate of records is averaged.
_WINDOW_SECONDS = 60.0


class Meter:
    """Counts records and what they took, in all, and records over the last minute. Thread-safe."""

    def __init__(self) -> None:
        self.total = 0
        self.effort = Effort()
        self.commit_seconds = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def add(self, records: int, effort: Effort, commit_seconds: float) -> None:
        """Count records that were just done, and what they took."""
        with self._lock:
            self.total += records
            self.effort += effort
            self.commit_seconds += commit_seconds
            self._recent.append((time.monotonic(), records))

    def stage_seconds(self) -> dict[str, float]:
        """Return stage -> seconds since the start."""
        with self._lock:
            done = self.effort
            stages = {"tokenize": done.tokenize, "forward": done.forward, "encode": done.encode}
            return {name: round(s, 3) for name, s in (stages | {"commit": self.commit_seconds}).items()}

    def rate(self) -> float:
        """Return records per second over the last minute, or since the start if that is shorter."""
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
                self._recent.popleft()
            return sum(records for _, records in self._recent) / max(min(_WINDOW_SECONDS, now - self._started), 1.0)


class HeartbeatThread:
    """Writes the heartbeat every few seconds until it is stopped."""

    def __init__(
        self, name: str, client: "redis.Redis", settings: Settings, device: DeviceClient, device_name: str, slots: int
    ) -> None:
        self.state = "starting"
        self.meter = Meter()
        self._name = name
        self._client = client
        self._settings = settings
        self._device = device
        self._device_name = device_name
        self._slots = slots
        self._faster_dtype = faster_dtype(settings)
        self._started = time.time()
        self._exiting_since: float | None = None
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Send the first heartbeat at once."""
        self._thread.start()

    def set_state(self, state: str) -> None:
        """Report at once that the worker is `ready` or `stopping`."""
        self.state = state
        self._wake.set()

    def stop(self) -> None:
        """End, and remove the worker from the list of live ones."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        try:
            remove_heartbeat(self._client, self._name)
        except redis.RedisError as error:
            logger.info("heartbeat not removed, it will expire: %s", error)

    def _run(self) -> None:
        while True:
            try:
                send_heartbeat(self._client, self.snapshot())
            except redis.RedisError as error:
                logger.info("could not send the heartbeat: %s", error)
            except Exception:  # the boundary: a worker without a heartbeat counts as dead
                logger.exception("could not send the heartbeat")
            self._exit_if_useless()
            self._wake.wait(INTERVAL_SECONDS)
            self._wake.clear()
            if self._stopping:
                return

    def _exit_if_useless(self) -> None:
        if self._exiting_since is None:
            if reason := self._reason_to_exit():
                logger.error("this worker is exiting: %s", reason)
                self._exiting_since = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)
        elif time.monotonic() - self._exiting_since > self._settings.worker_stop_seconds:
            # Celery ignores SIGTERM while it waits for a missing Redis, and no other process can stop it.
            os.kill(os.getpid(), signal.SIGKILL)

    def _reason_to_exit(self) -> str:
        if self._settings.supervised not in (0, os.getppid()):
            return "what started it is gone"
        # A worker that is still starting reports by itself why it cannot.
        return str(self._device.broken or "") if self.state == "ready" else ""

    def snapshot(self) -> Heartbeat:
        """Return the worker as it is now."""
        status = self._device.status
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
            models=status.models,
            records_per_second=round(self.meter.rate(), 1),
            records_done=self.meter.total,
            memory_bytes=sum(_resident_bytes(pid) for pid in (os.getpid(), self._device.pid) if pid is not None),
            version=f"{installed_version('hugqueue') or 'uninstalled'} (Python {platform.python_version()})",
            fallbacks=self._device.fallbacks,
            tokens_done=self.meter.effort.tokens,
            stage_seconds=self.meter.stage_seconds(),
            device_memory_bytes=max(0, (status.total or 0) - (status.free or 0)),
            device_memory_limit_bytes=status.total or 0,
            faster_dtype=self._faster_dtype,
        )


def _resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 if /proc does not show it."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
