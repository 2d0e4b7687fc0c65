"""Waiting tasks: kept in Redis until their job ends, then sent again, so that Celery completes them as any other task.

A task that waits occupies no slot of a worker and survives its restart. What follows it, a chain, a chord or a
callback, is part of its message.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery
from celery.canvas import Signature
from kombu.exceptions import OperationalError
from kombu.utils import json

from common.redis import keys
from common.redis.locks import acquire_lock, release_lock

logger = logging.getLogger(__name__)

#: Seconds between two looks for jobs that have ended: two small commands each.
_POLL_SECONDS = 0.5
#: Milliseconds after which another process takes over the waking from one that died.
_LOCK_MS = 10_000
#: Tasks that are sent before the lock is renewed.
_PAGE = 200


class Waits:
    """The tasks that wait for the end of jobs.

    Args:
        client: Of this queue's Redis.
        app: Sends the tasks again.
        owner: Name of this process.
    """

    def __init__(self, client: "redis.Redis", app: Celery, owner: str) -> None:
        self._client = client
        self._app = app
        self._owner = owner
        self._stopped = threading.Event()

    def add(self, job_id: str, task_id: str, message: Signature) -> None:
        """Keep a task until its job has ended; a task that is delivered twice is kept once.

        Raises:
            redis.RedisError: Redis is away or full.
        """
        with self._client.pipeline() as pipe:
            pipe.hset(keys.waits(job_id), task_id, json.dumps(message))
            pipe.sadd(keys.WAITED, job_id)
            pipe.execute()

    @contextlib.contextmanager
    def waking(self) -> Iterator[None]:
        """Wake tasks in a thread as long as the block lasts."""
        thread = threading.Thread(target=self._run, name="waits", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()
            with contextlib.suppress(redis.RedisError):
                release_lock(self._client, keys.CONTROL, self._owner)

    def _run(self) -> None:
        reported = ""
        while not self._stopped.wait(_POLL_SECONDS):
            try:
                self.wake()
                reported = ""
            except (redis.RedisError, OperationalError, OSError) as error:
                if str(error) != reported:
                    logger.warning("waiting tasks cannot be sent: %s", error)
                reported = str(error)
            except Exception:  # the boundary: data in Redis is untrusted
                logger.exception("waiting tasks cannot be sent")

    def wake(self) -> None:
        """Send the tasks whose job has ended or is gone, unless another process does that at present.

        Raises:
            redis.RedisError: Redis is away.
            kombu.exceptions.OperationalError: The broker is away.
            OSError: Likewise.
        """
        if not self._has_lock():
            return
        for raw_id in self._client.sdiff(keys.WAITED, keys.ACTIVE):
            job_id = raw_id.decode(errors="replace")
            for number, (task_id, message) in enumerate(self._client.hscan_iter(keys.waits(job_id), count=_PAGE)):
                if number % _PAGE == 0 and not self._has_lock():
                    return
                self._send(message)
                self._client.hdel(keys.waits(job_id), task_id)
            self._forget(raw_id, keys.waits(job_id))

    def _has_lock(self) -> bool:
        return not self._stopped.is_set() and acquire_lock(self._client, keys.CONTROL, self._owner, _LOCK_MS)

    def _send(self, message: bytes) -> None:
        try:
            signature: Any = Signature.from_dict(json.loads(message), app=self._app)
            sent = signature.apply_async()
        except (redis.RedisError, OperationalError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - it would be sent again forever, and no task after it
            logger.error("a waiting task cannot be sent and is dropped: %s: %.200r", error, message)
        else:
            logger.debug("task %s continues", sent.id)

    def _forget(self, job_id: bytes, waits: str) -> None:
        """Remove a job from the set of those that are waited for, unless another task began to wait meanwhile."""
        with contextlib.suppress(redis.WatchError), self._client.pipeline() as pipe:
            pipe.watch(waits)
            if not pipe.exists(waits):
                pipe.multi()
                pipe.srem(keys.WAITED, job_id)
                pipe.execute()
