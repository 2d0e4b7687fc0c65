"""kombu's Redis transport with some things mended.

With kombu's own (5.7) a message that cannot be decoded ends the worker that takes it, and the next one, and so on;
here it is set aside. A worker cannot start while Redis is full. And after an outage a worker may stay away for half a
minute more. What the messages mean is Celery's and `common.broker.app`'s; this file knows that they are JSON objects,
and where to put what is not.
"""

import functools
import json
import logging
from collections.abc import Callable
from types import NoneType
from typing import Any

import kombu
import redis
from celery.app import amqp
from kombu.exceptions import OperationalError
from kombu.transport import redis as kombu_redis

from common.redis.client import is_redis_full
from common.redis.keys import DEAD_LETTERS

logger = logging.getLogger(__name__)

#: So many refused messages are kept for whoever wants to know, so many bytes of each.
MAX_DEAD_LETTERS, MAX_DEAD_LETTER_BYTES = 100, 4096

#: Headers that Celery takes for text without looking; another type stops it in a thread where nobody hears of it.
_TEXTS = ("id", "task", "shadow", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin")

#: Seconds between two tries of a worker to reach Redis. kombu goes up to 30, all of them idle once Redis is back.
RECONNECT = 2.0

Refuse = Callable[[bytes, str], None]


def fault_of(raw: bytes) -> str | None:
    """Return why these bytes are no message; None if kombu can open them."""
    try:
        message = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, dict):
        return "not a JSON object with headers"
    odd = [name for name in _TEXTS if not isinstance(headers.get(name, ""), str | NoneType)]
    return f"its header {odd[0]} is no text" if odd else None


class Client(kombu_redis.PrefixedStrictRedis):  # type: ignore[misc]
    """kombu's client; what it pops from a queue and is no message goes to `refuse`."""

    def __init__(self, *args: Any, refuse: Refuse, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refuse = refuse

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        """Return a pipeline that is no transaction: a full Redis refuses all of one, reading and deleting too."""
        return super().pipeline(False, shard_hint)

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """Return the answer to a command; that of BRPOP is as if nothing had come if it was no message."""
        answer = super().parse_response(connection, command_name, **options)
        if command_name == "BRPOP" and answer and (fault := fault_of(answer[1])):
            self._refuse(answer[1], fault)
            return None
        return answer


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """kombu's channel on that client."""

    # A ticket in hand is void already: kombu would send it again, or, with Redis away, dump it into a file of /tmp.
    do_restore = False

    def _get_client(self) -> Callable[..., Client]:
        super()._get_client()  # checks the version of redis-py
        return functools.partial(Client, global_keyprefix=self.global_keyprefix, refuse=self.refuse)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except redis.ResponseError as error:
            if self.typeof(exchange).type != "fanout" or not is_redis_full(error):
                raise
            logger.warning("Redis is full: listening to %s without a note of it", exchange)  # which nobody reads

    def refuse(self, raw: bytes, fault: str) -> None:
        """Set a message aside, in a list that does not grow without limit."""
        logger.error("refused a message, %s: %.200r", fault, raw)
        client = redis.Redis(connection_pool=self.pool)
        try:
            with client.pipeline(transaction=False) as pipe:
                pipe.lpush(DEAD_LETTERS, raw[:MAX_DEAD_LETTER_BYTES]).ltrim(
                    DEAD_LETTERS, 0, MAX_DEAD_LETTERS - 1
                ).execute()
        except redis.RedisError as error:
            logger.warning("it could not be kept: %s", error)


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """kombu's transport on that channel."""

    Channel = Channel

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        """Hand a message to its consumer; one on which the consumer fails is set aside too."""
        try:
            super()._deliver(message, queue)
        except (OSError, redis.RedisError, OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - the door: nothing that a message holds may end the worker
            self._refuse(message, f"{type(error).__name__}: {error}")

    def _refuse(self, message: dict[str, Any], fault: str) -> None:
        channel = next(channel for channel in self.channels if channel)
        channel.refuse(json.dumps(message).encode(), fault)
        properties = message.get("properties")
        tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
        if isinstance(tag, str):
            channel.qos.ack(tag)  # or it would count as in hand for ever


class Connection(kombu.Connection):  # type: ignore[misc]
    """kombu's connection on that transport, whatever the form of the address: Flower reads the address too."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> "Connection":
        """Return the connection once it stands; try every `RECONNECT` seconds, not ever more seldom."""
        connection: Connection = super().ensure_connection(*args, **{"interval_max": RECONNECT} | kwargs)
        return connection

    def get_transport_cls(self) -> type[Transport]:
        """Return the transport."""
        return Transport


class Amqp(amqp.AMQP):  # type: ignore[misc]
    """Celery's door to kombu, with that connection."""

    Connection = Connection
