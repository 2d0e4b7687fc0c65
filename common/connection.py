"""Connections to Redis with bounded waits, and its errors put into words."""

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from common.errors import StoreUnavailable
from common.settings import mask_url

#: Seconds to wait for one answer. Three tries of it stay under the ten seconds after which a command must have ended.
TIMEOUT = 2.5
RETRIES = 2


def connect(url: str) -> "redis.Redis":
    """Return a client of the Redis at `url` (`redis://`, `rediss://`, `unix://` or Celery's `redis+socket://`).

    Nothing is sent yet. Every command ends within about nine seconds, with an answer or an error.
    """
    return redis.Redis.from_url(
        client_url(url),
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
    )


def client_url(url: str) -> str:
    """Return the address as redis-py writes it: Celery writes a socket as `redis+socket:///path?virtual_host=0`."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    query = dict(parse_qsl(parts.query))
    query["db"] = query.pop("virtual_host", query.get("db", "0"))
    return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"


@contextlib.contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turn what redis-py raises into `StoreUnavailable`, in words.

    Raises:
        StoreUnavailable: Redis is away, refuses the password, lacks a right, or is full.
    """
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailable(explain(error, url)) from error


def explain(error: Exception, url: str) -> str:
    """Return one sentence about what Redis (or the way to it) has."""
    where = mask_url(url)
    text = str(error)
    if isinstance(error, redis.AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return f"Redis at {where} refuses the user or the password."
    if isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in text:
        return f"Redis at {where} does not allow this user what hugqueue needs: {text}"
    if isinstance(error, redis.exceptions.OutOfMemoryError) or text.startswith("OOM"):
        return f"Redis at {where} is full (maxmemory). Finished jobs leave with their time to live."
    if isinstance(error, redis.TimeoutError):
        return f"Redis at {where} does not answer."
    if isinstance(error, redis.ConnectionError):
        return f"Redis at {where} cannot be reached: {text}"
    return f"Redis at {where} answers with an error: {text}"


def is_passing(error: Exception) -> bool:
    """Whether waiting may mend it: Redis away, loading its data, or full for now."""
    passing = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError)
    denied = isinstance(error, redis.AuthenticationError)
    return not denied and (isinstance(error, passing) or str(error).startswith(("LOADING", "OOM", "READONLY")))


def wait_for(client: "redis.Redis", seconds: float) -> None:
    """Wait until Redis answers.

    Raises:
        redis.RedisError: it does not within `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            client.ping()
            return
        except redis.RedisError as error:
            if not is_passing(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)
