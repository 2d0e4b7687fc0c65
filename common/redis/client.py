"""Connections to Redis with bounded waits, and its errors put into words."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from common.errors import StorageError, StoreUnavailable
from common.redis.url import mask_url

T = TypeVar("T")

#: Seconds to wait for one answer, or for a connection.
TIMEOUT = 2.5
#: Tries after the first, and seconds after which no further one is begun. A connection is made, then it is used: both
#: together stay under the ten seconds after which a command must have ended.
RETRIES, LAST_TRY = 2, 2.6


#: Codes of refusals that pass by themselves, or once an operator has seen to it, and what Redis is at then.
_REFUSALS = {
    "BUSY": "is busy with a script that takes long",
    "LOADING": "is loading its data",
    "MASTERDOWN": "is a replica that has lost its master",
    "MISCONF": "cannot write to its disk",
    "NOREPLICAS": "has too few replicas to take writes (min-replicas-to-write)",
    "READONLY": "is a replica at present, and takes no writes",
    "TRYAGAIN": "moves its data at present",
}
_CODE = re.compile(rf"(?:^|[\s-])({'|'.join(_REFUSALS)}) ")
_CODES: Sequence[tuple[type[Exception], str]] = (
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
)
_TRANSIENT = (redis.ConnectionError, redis.TimeoutError)


class BoundedRetry(Retry):  # type: ignore[misc]
    """redis-py's retries, which by themselves multiply: each try of a command tries its connection as often again."""

    _within = threading.local()

    def call_with_retry(self, do: Callable[[], Any], fail: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what `do` gives, tried again within bounds; within another such call it is tried once."""
        if getattr(self._within, "active", False):
            return Retry(NoBackoff(), 0).call_with_retry(do, fail, *args, **kwargs)
        end = time.monotonic() + LAST_TRY

        def failed(error: Exception, *count: int) -> None:
            fail(error, *count)
            if time.monotonic() > end:
                raise error

        self._within.active = True
        try:
            return super().call_with_retry(do, failed, *args, **kwargs)
        finally:
            self._within.active = False


def connect(url: str) -> "redis.Redis":
    """Return a client of the Redis at `url` (`redis://`, `rediss://`, `unix://` or Celery's `redis+socket://`).

    Nothing is sent yet. Every command ends within ten seconds, with an answer or an error.
    """
    return redis.Redis.from_url(
        client_url(url),
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        health_check_interval=15,
        retry=BoundedRetry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
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
    return f"Redis at {mask_url(url)} {_ailment(error, str(error), url)}"


def _ailment(error: Exception, text: str, url: str) -> str:
    refused = (
        "refuses the user or the password."
        if urlsplit(url).password is not None
        else "asks for a password, and the address has none. Write it as redis://:PASSWORD@HOST:PORT/0."
    )
    denied = isinstance(error, redis.AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text
    lacking = isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in text
    ailments = (
        (denied, refused),
        (lacking, f"does not allow this user what hugqueue needs: {text}"),
        (is_redis_full(error), "is full (maxmemory). Finished jobs leave with their time to live."),
        (_refusal_of(error) == "MISCONF", f"cannot write to its disk: {text}"),
        (_refusal_of(error) in _REFUSALS, f"{_REFUSALS.get(_refusal_of(error))}."),
        (answers_without_tls(error, url), "speaks no TLS: write redis:// in place of rediss://."),
        (isinstance(error, redis.TimeoutError), "does not answer."),
        (isinstance(error, redis.ConnectionError), f"cannot be reached: {_certificate_fault(text) or text}"),
    )
    return next((words for holds, words in ailments if holds), f"answers with an error: {text}")


def answers_without_tls(error: Exception, url: str) -> bool:
    """Whether TLS was asked of a Redis that has none: it takes the greeting for half a command, and says nothing."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or not isinstance(error, redis.TimeoutError | redis.ConnectionError):
        return False
    place = (parts.hostname or "localhost", parts.port or 6379)
    with contextlib.suppress(OSError), socket.create_connection(place, timeout=1) as plain:
        plain.sendall(b"PING\r\n")
        return plain.recv(1) in (b"+", b"-")
    return False


def _certificate_fault(text: str) -> str | None:
    """Return what is wrong with the server's certificate, where that is what the error is about."""
    match = re.search(r"certificate verify failed: (.*?)\.? \(_ssl", text)
    if match is None:
        return None
    return (
        f"its certificate is not trusted ({match[1]}). If a CA of your own signed it, name the CA's file in the "
        "address: rediss://...?ssl_ca_certs=/PATH/ca.pem"
    )


def is_transient(error: BaseException | None) -> bool:
    """Whether waiting may help: Redis is away, loading its data, busy, a replica, or full for now, it or its disk."""
    if isinstance(error, StoreUnavailable):
        return is_transient(error.__cause__)
    if isinstance(error, redis.AuthenticationError) or _certificate_fault(str(error)) is not None:
        return False
    return isinstance(error, _TRANSIENT) or (
        isinstance(error, redis.RedisError) and (is_redis_full(error) or _refusal_of(error) in _REFUSALS)
    )


def retry_while_unavailable(step: Callable[[], T], wait: Callable[[Exception], None]) -> T:
    """Return what `step` returns, calling it again while Redis, or a storage, is unavailable.

    Args:
        step: what to do.
        wait: gets the error and waits before the next attempt; raises to give up.

    Raises:
        redis.RedisError: waiting does not help.
        StoreUnavailable: the same, of a step that raises that.
    """
    while True:
        try:
            return step()
        except (redis.RedisError, StoreUnavailable) as error:
            if not is_transient(error):
                raise
            wait(error)
        except StorageError as error:
            wait(error)


def _refusal_of(error: Exception) -> str:
    """Return the code with which Redis refuses a command for now; empty where it gave none.

    redis-py takes some codes off the text and raises a class of its own; where a script met one, it is in a sentence.
    """
    match = _CODE.search(str(error)) if isinstance(error, redis.ResponseError) else None
    return next((code for kind, code in _CODES if isinstance(error, kind)), match[1] if match else "")


def is_redis_full(error: Exception) -> bool:
    """Whether Redis had no room; where a script met that, Redis 6.2 puts it into a sentence of its own."""
    return isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM command not allowed" in str(error)


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
            if not is_transient(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)
