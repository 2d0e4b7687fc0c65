"""How many records a worker does: in all, and per second over the last minute."""

import threading
import time
from collections import deque

WINDOW = 60.0


class Meter:
    """Counts records; thread-safe."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def add(self, records: int) -> None:
        """Count records that were just done."""
        with self._lock:
            self.total += records
            self._recent.append((time.monotonic(), records))

    def rate(self) -> float:
        """Return records per second over the last minute, or since the start if that is shorter."""
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0][0] < now - WINDOW:
                self._recent.popleft()
            return sum(records for _, records in self._recent) / max(min(WINDOW, now - self._started), 1.0)
