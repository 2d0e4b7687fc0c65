"""Whether the embedded Redis answers: one quick look, without a second try."""

from enum import Enum

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.redis.client import client_url

#: Seconds to wait for the answer.
_TIMEOUT = 2.0


class ServerState(Enum):
    """What a look at Redis finds."""

    DOWN = "away"
    LOADING = "loading"  # it lives, and reads its data
    READY = "ready"


def probe(url: str) -> ServerState:
    """Return how Redis at `url` answers."""
    client = redis.Redis.from_url(
        client_url(url), socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, retry=Retry(NoBackoff(), 0)
    )
    try:
        client.ping()
        return ServerState.READY
    except redis.exceptions.BusyLoadingError:
        return ServerState.LOADING
    except redis.RedisError:
        return ServerState.DOWN
    finally:
        client.close()
