"""Redis client: connections with bounded waits, retries, and error messages."""

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

#: Seconds to wait for one answer or for a connection.
TIMEOUT = 2.5
#: Retries, and seconds after which no further one begins. Connecting and then using the connection both take these:
#: together they stay below the ten seconds after which a command must have ended.
RETRIES, LAST_TRY = 2, 2.6


#: Error codes that are transient, or that an operator can resolve, and what they mean.
_TRANSIENT_CODES = {
    "BUSY": "is busy with a slow script",
    "LOADING": "is loading its data",
    "MASTERDOWN": "is a replica without its master",
    "MISCONF": "cannot write to its disk",
    "NOREPLICAS": "has too few replicas to accept writes (min-replicas-to-write)",
    "READONLY": "is a replica at present and accepts no writes",
    "TRYAGAIN": "is moving its data at present",
}
_CODE = re.compile(rf"(?:^|[\s-])({'|'.join(_TRANSIENT_CODES)}) ")
_CODE_OF_CLASS: Sequence[tuple[type[Exception], str]] = (
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
)
_TRANSIENT = (redis.ConnectionError, redis.TimeoutError)


class BoundedRetry(Retry):  # type: ignore[misc]
    """redis-py's retries without their multiplication: each attempt of a command retries its connection as well."""

    _nested = threading.local()

    def call_with_retry(self, do: Callable[[], Any], fail: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what `do` returns, with bounded retries; inside another such call, without retries."""
        if getattr(self._nested, "active", False):
            return Retry(NoBackoff(), 0).call_with_retry(do, fail, *args, **kwargs)
        end = time.monotonic() + LAST_TRY

        def failed(error: Exception, *count: int) -> None:
            fail(error, *count)
            if time.monotonic() > end:
                raise error

        self._nested.active = True
        try:
            return super().call_with_retry(do, failed, *args, **kwargs)
        finally:
            self._nested.active = False


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
    """Return the URL in redis-py's form: Celery writes a socket as `redis+socket:///path?virtual_host=0`."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    query = dict(parse_qsl(parts.query))
    query["db"] = query.pop("virtual_host", query.get("db", "0"))
    return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"


@contextlib.contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Turn errors of redis-py into `StoreUnavailable`.

    Raises:
        StoreUnavailable: Redis cannot be reached, refuses the password or the command, or is full.
    """
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailable(explain(error, url)) from error


def explain(error: Exception, url: str) -> str:
    """Return one sentence about the problem with Redis or the connection to it."""
    return f"Redis at {mask_url(url)} {_describe(error, str(error), url)}"


def _describe(error: Exception, text: str, url: str) -> str:
    refused = (
        "refuses the user or the password."
        if urlsplit(url).password is not None
        else "requires a password, and the URL has none. Write it as redis://:PASSWORD@HOST:PORT/0."
    )
    denied = isinstance(error, redis.AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text
    lacking = isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in text
    causes = (
        (denied, refused),
        (lacking, f"denies this user a command that hugqueue needs: {text}"),
        (is_redis_full(error), "is full (maxmemory). Finished jobs are removed when their time to live is over."),
        (_error_code(error) == "MISCONF", f"cannot write to its disk: {text}"),
        (_error_code(error) in _TRANSIENT_CODES, f"{_TRANSIENT_CODES.get(_error_code(error))}."),
        (answers_without_tls(error, url), "does not use TLS: write redis:// instead of rediss://."),
        (isinstance(error, redis.TimeoutError), "does not answer."),
        (isinstance(error, redis.ConnectionError), f"cannot be reached: {_certificate_fault(text) or text}"),
    )
    return next((words for applies, words in causes if applies), f"answers with an error: {text}")


def answers_without_tls(error: Exception, url: str) -> bool:
    """Whether the URL asks for TLS and Redis has none: it takes the handshake for half a command and sends nothing."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or not isinstance(error, redis.TimeoutError | redis.ConnectionError):
        return False
    address = (parts.hostname or "localhost", parts.port or 6379)
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1) as plain:
        plain.sendall(b"PING\r\n")
        return plain.recv(1) in (b"+", b"-")
    return False


def _certificate_fault(text: str) -> str | None:
    """Return what is wrong with the server's certificate; None if the error is about something else."""
    match = re.search(r"certificate verify failed: (.*?)\.? \(_ssl", text)
    if match is None:
        return None
    return (
        f"its certificate is not trusted ({match[1]}). If a CA of your own signed it, name the CA's file in the "
        "URL: rediss://...?ssl_ca_certs=/PATH/ca.pem"
    )


def is_transient(error: BaseException | None) -> bool:
    """Whether waiting may help: Redis is unreachable, loading, busy, a replica, or it or its disk is full for now."""
    if isinstance(error, StoreUnavailable):
        return is_transient(error.__cause__)
    if isinstance(error, redis.AuthenticationError) or _certificate_fault(str(error)) is not None:
        return False
    return isinstance(error, _TRANSIENT) or (
        isinstance(error, redis.RedisError) and (is_redis_full(error) or _error_code(error) in _TRANSIENT_CODES)
    )


def retry_while_unavailable(step: Callable[[], T], wait: Callable[[Exception], None]) -> T:
    """Return what `step` returns, calling it again while Redis or a storage is unavailable.

    Args:
        step: the call to retry.
        wait: called with the error before the next attempt; waits, or raises to end the retries.

    Raises:
        redis.RedisError: the error is not transient.
        StoreUnavailable: the same, if `step` raises that.
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


def _error_code(error: Exception) -> str:
    """Return the transient error code in an error of Redis; empty if there is none.

    redis-py removes some codes from the text and raises a class of its own; if a script failed, the code is in the
    middle of the text.
    """
    match = _CODE.search(str(error)) if isinstance(error, redis.ResponseError) else None
    return next((code for kind, code in _CODE_OF_CLASS if isinstance(error, kind)), match[1] if match else "")


def is_redis_full(error: Exception) -> bool:
    """Whether Redis was out of memory; if a script failed, Redis 6.2 embeds the error in a text of its own."""
    return isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM command not allowed" in str(error)
