"""kombu's Redis transport, made robust: dead letters, start on a full Redis, and quick reconnection.

With kombu 5.7 a message that cannot be decoded ends the worker that receives it, and then the next worker; here it
becomes a dead letter. A worker of kombu cannot start while Redis is full, loses the message that it receives then, and
may take half a minute to return after an outage.
"""

import functools
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import kombu
import msgspec
import redis
from celery.app import amqp
from celery.worker.state import maybe_shutdown
from kombu.exceptions import OperationalError
from kombu.transport import redis as kombu_redis

from common.redis.client import is_redis_full, retry_while_unavailable
from common.redis.keys import DEAD_LETTERS
from common.validation import checked

logger = logging.getLogger(__name__)

#: How many messages that cannot be decoded are kept, and how many bytes of each.
MAX_DEAD_LETTERS, MAX_DEAD_LETTER_BYTES = 100, 4096

#: Seconds between two attempts of a worker to reach Redis. kombu waits up to 30, even if Redis is back.
RECONNECT_SECONDS = 2.0
#: Seconds between two attempts to record a message while Redis is full.
FULL_SECONDS = 1.0

DeadLetter = Callable[[bytes, str], None]


class _Headers(msgspec.Struct):
    """Headers that Celery takes for text without a check; another type ends one of its threads without a word."""

    id: str | None = None
    task: str | None = None
    shadow: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None


class _CeleryMessage(msgspec.Struct):
    headers: _Headers


def fault_of(raw: bytes) -> str | None:
    """Return why these bytes are not a message that kombu and Celery can read; None if they are one."""
    try:
        checked(json.loads(raw.decode()), _CeleryMessage, "the message")
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


class TolerantClient(kombu_redis.PrefixedStrictRedis):  # type: ignore[misc]
    """kombu's client; items of a queue that are not messages go to `dead_letter`."""

    def __init__(self, *args: Any, dead_letter: DeadLetter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dead_letter = dead_letter

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """Return a pipeline without a transaction: a full Redis refuses transactions, even to read and delete."""
        return super().pipeline(False, shard_hint)

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """Return the answer to a command; for BRPOP of something that is not a message, as if nothing had arrived."""
        answer = super().parse_response(connection, command_name, **options)
        if command_name == "BRPOP" and answer and (fault := fault_of(answer[1])):
            self._dead_letter(answer[1], fault)
            return None
        return answer


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """kombu's record of the messages that are being processed, if it keeps one, also while Redis is full."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message, which is in no queue any more; while Redis is full, wait, and receive nothing else.

        Raises:
            celery.exceptions.WorkerShutdown: The worker is to stop meanwhile.
        """
        warned = False

        def wait(error: Exception) -> None:
            nonlocal warned
            if not is_redis_full(error):
                raise error
            if not warned:
                logger.warning("Redis is full: a message that was received waits, and those behind it")
            warned = True
            maybe_shutdown()
            time.sleep(FULL_SECONDS)

        retry_while_unavailable(functools.partial(super().append, message, delivery_tag), wait)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Send messages again whose processes died; later if Redis is full."""
        try:
            super().restore_visible(*args, **options)
        except redis.ResponseError as error:
            if not is_redis_full(error):
                raise


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """kombu's channel on that client."""

    QoS = QoS

    @property
    def do_restore(self) -> bool:
        """Whether messages that were received and not processed are sent again when the channel closes.

        A ticket is void once it is received, and without Redis kombu would dump it into a file in /tmp.
        """
        return bool(self.ack_emulation)

    def _get_client(self) -> Callable[..., TolerantClient]:
        super()._get_client()  # checks the version of redis-py
        return functools.partial(TolerantClient, global_keyprefix=self.global_keyprefix, dead_letter=self.dead_letter)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except redis.ResponseError as error:
            if self.typeof(exchange).type != "fanout" or not is_redis_full(error):
                raise
            logger.warning("Redis is full: listening to %s without a binding", exchange)  # which nobody reads

    def dead_letter(self, raw: bytes, fault: str) -> None:
        """Keep a message that cannot be processed, in a list of bounded length."""
        logger.error("moved a message to the dead letters: %s: %.200r", fault, raw)
        client = redis.Redis(connection_pool=self.pool)
        try:
            with client.pipeline(transaction=False) as pipe:
                pipe.lpush(DEAD_LETTERS, raw[:MAX_DEAD_LETTER_BYTES]).ltrim(
                    DEAD_LETTERS, 0, MAX_DEAD_LETTERS - 1
                ).execute()
        except redis.RedisError as error:
            logger.warning("the dead letter could not be kept: %s", error)


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's transport on that channel."""

    Channel = Channel

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        """Deliver a message to its consumer; one on which the consumer fails becomes a dead letter too."""
        try:
            super()._deliver(message, queue)
        except (OSError, redis.RedisError, OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - nothing that a message holds may end the worker
            self._refuse(message, f"{type(error).__name__}: {error}")

    def _refuse(self, message: dict[str, Any], fault: str) -> None:
        channel = next(channel for channel in self.channels if channel)
        channel.dead_letter(json.dumps(message).encode(), fault)
        properties = message.get("properties")
        tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
        if isinstance(tag, str):
            channel.qos.ack(tag)  # or it would occupy its slot forever


class Connection(kombu.Connection):  # type: ignore[misc]
    """kombu's connection on that transport, whatever the form of the URL, which Flower reads too."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> "Connection":
        """Return the connection once it is established; try every `RECONNECT_SECONDS`, without backoff."""
        connection: Connection = super().ensure_connection(*args, **{"interval_max": RECONNECT_SECONDS} | kwargs)
        return connection

    def get_transport_cls(self) -> type[Transport]:
        """Return the transport."""
        return Transport


class Amqp(amqp.AMQP):  # type: ignore[misc]
    """Celery's access to kombu, with that connection."""

    Connection = Connection
