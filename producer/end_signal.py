"""The end of a job, announced: Redis publishes it (`common/redis/lua/shared.lua`), so that nobody has to ask often.

What is published is not kept, and some users of Redis may not subscribe: whoever waits asks now and then all the same.
"""

import time
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import redis

from common.redis.keys import ended_channel


class EndSignal:
    """Waits for the end of a job; a context manager.

    Args:
        client: a connection.
        job_id: the job.
    """

    def __init__(self, client: "redis.Redis", job_id: str) -> None:
        self._client = client
        self._channel = ended_channel(job_id)
        self._subscription: Any = None
        self._refused = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unsubscribe()

    def wait(self, seconds: float) -> None:
        """Return after that time, or as soon as the job has ended.

        The first call, and the first one after a lost connection, only subscribes: the job may have ended before.
        """
        end = time.monotonic() + seconds
        try:
            if self._subscription is None and not self._refused:
                self._subscribe()
            elif self._subscription is not None:
                self._listen(end)
            else:
                time.sleep(seconds)
        except (redis.RedisError, OSError) as error:  # the next look at the job says more
            self._refused = isinstance(error, redis.ResponseError)
            self._unsubscribe()
            time.sleep(max(0.0, end - time.monotonic()))

    def _subscribe(self) -> None:
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(self._channel)

    def _listen(self, end: float) -> None:
        while (left := end - time.monotonic()) > 0:
            if self._subscription.get_message(timeout=left) is not None:
                return

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            with closing(self._subscription):
                self._subscription = None
