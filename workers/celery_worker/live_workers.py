"""A cached list of the live workers, which every ticket asks for."""

import threading
import time

import redis

from common.queue.heartbeats import Heartbeat, live_workers

#: Seconds for which the list is good; heartbeats come every three.
_FRESH_SECONDS = 1.0


class LiveWorkers:
    """All live workers, this one included, as of a second ago at most; any thread may ask."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._lock = threading.Lock()
        self._cached: list[Heartbeat] = []
        self._until = 0.0

    def now(self) -> list[Heartbeat]:
        """Return all live workers.

        Raises:
            redis.RedisError: Redis is away.
        """
        with self._lock:
            if time.monotonic() >= self._until:
                self._cached = live_workers(self._client)
                self._until = time.monotonic() + _FRESH_SECONDS
            return self._cached
