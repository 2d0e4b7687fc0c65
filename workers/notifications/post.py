"""One POST request: to an address that was checked, with a limit on its whole time, following no redirect.

`http.client` and no library on top of it: those resolve the host's name themselves, and follow redirects and proxies.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit, urlunsplit

from workers.notifications.addresses import NotAllowed, find_addresses


class PostFailed(Exception):
    """Raised for a request without an answer; the text says why."""


@dataclass(frozen=True, slots=True)
class PostAnswer:
    """What a receiver answered."""

    status: int
    retry_after: float = 0.0  #: seconds for which it asks not to be asked again, 0 if it does not


def post(url: str, body: bytes, headers: Mapping[str, str], *, allowed: Sequence[str], timeout: float) -> PostAnswer:
    """Send a POST request; return the answer, whose body is not read.

    Args:
        url: a checked URL.
        body: of the request.
        headers: of the request, besides `Host` and `Content-Length`.
        allowed: as for `find_addresses`.
        timeout: seconds for all of it, apart from the resolution of the host's name.

    Raises:
        PostFailed: the URL is not allowed, the host is not reached, or there is no answer in time.
    """
    try:
        addresses = find_addresses(url, allowed)
        return _post(url, addresses, body, headers, timeout)
    except NotAllowed as error:
        raise PostFailed(str(error)) from error
    except TimeoutError as error:
        raise PostFailed(f"no answer within {timeout:g} s") from error
    except HTTPException as error:
        raise PostFailed("the answer is not HTTP, or the connection was closed without one") from error
    except (OSError, UnicodeError) as error:
        raise PostFailed(getattr(error, "strerror", None) or str(error)) from error


def _post(
    url: str, addresses: Sequence[tuple[str, int]], body: bytes, headers: Mapping[str, str], timeout: float
) -> PostAnswer:
    parts = urlsplit(url)
    connection = _Connection(url, addresses, time.monotonic() + timeout)
    # Each read has a timeout of its own, which a receiver that sends a byte now and then never exceeds.
    watchdog = threading.Timer(timeout, connection.cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection.request("POST", target, body, {"Host": parts.netloc, **headers})
        answer = connection.getresponse()
    except (OSError, HTTPException) as error:
        if connection.is_over:
            raise TimeoutError from error
        raise
    finally:
        watchdog.cancel()
        connection.close()
    if connection.is_over:  # `http.client` takes headers that were cut for all of them
        raise TimeoutError
    return PostAnswer(answer.status, retry_after(answer.getheader("Retry-After"), time.time()))


def retry_after(value: str | None, now: float) -> float:
    """Return the seconds in a header `Retry-After`, which holds them or a date; 0 if it is neither, or over."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:20]), 1e9)
    try:
        date = parsedate_tz(text)
        return min(max(0.0, mktime_tz(date) - now), 1e9) if date is not None else 0.0
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0.0


class _Connection(HTTPConnection):
    """A connection to the first of these addresses that accepts one, all of it until `end` by the monotonic clock."""

    def __init__(self, url: str, addresses: Sequence[tuple[str, int]], end: float) -> None:
        parts = urlsplit(url)
        super().__init__(parts.hostname or "", addresses[0][1])
        self._addresses = addresses
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._end = end

    @property
    def is_over(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._end

    def connect(self) -> None:
        """Connect, and verify the certificate by the name in the URL."""
        self.sock = self._connect_to_any()
        self.sock.settimeout(self._left())
        if self._tls is not None:
            # The handshake follows once `cut` knows the socket.
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def _connect_to_any(self) -> socket.socket:
        *others, last = self._addresses
        for tried, address in enumerate(others):
            share = self._left() / (len(self._addresses) - tried)  # a silent address leaves time for the next
            with contextlib.suppress(OSError):
                return socket.create_connection(address, share)
        return socket.create_connection(last, self._left())

    def _left(self) -> float:
        """Return the seconds that are left. Raises `TimeoutError` if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def cut(self) -> None:
        """End the connection in the middle of what it does, from another thread."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # not that of TLS, which belongs to its thread
