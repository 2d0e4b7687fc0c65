"""Notifications of ended jobs: the URLs, the secrets that sign requests, and the state of delivery."""

import base64
import binascii
import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from common.errors import UsageError

#: An entry of `HUGQUEUE_NOTIFY_ALLOWED` that allows every address.
ANY_ORIGIN = "*"
#: What a secret begins with, in the Standard Webhooks scheme.
SECRET_PREFIX = "whsec_"  # noqa: S105 - not a secret
_MAX_URL = 2048
_SECRET_BYTES = range(24, 65)
_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "https://hooks.example.com/jobs"
_PRINTABLE = re.compile(r"[!-~]+")


class NotificationState(StrEnum):
    """Whether a notification was delivered."""

    PENDING = "pending"  # to be sent, or to be tried again
    DELIVERED = "delivered"  # the receiver has answered with success
    GIVEN_UP = "given_up"  # there are no more attempts


@dataclass(frozen=True, slots=True)
class Notification:
    """The notification of a job's latest end. Times are seconds since the epoch, by Redis's clock."""

    state: NotificationState
    attempts: int = 0  #: that were begun
    last_attempt_at: float | None = None  #: when the latest one ended
    next_attempt_at: float | None = None
    error: str = ""  #: why the latest one failed


def check_notify_url(url: str, source: str) -> str:
    """Return the URL after checking that it can be notified.

    Args:
        url: the URL. It may hold a token, so no message shows it.
        source: where it comes from, for messages: `--notify`.

    Raises:
        UsageError: it is not an HTTP URL, or has a user name or password.
    """
    if fault := _fault_of(url):
        raise UsageError(f"{source}: {fault}. Expected a URL such as {_EXAMPLE}.")
    return url


def _fault_of(url: str) -> str | None:
    if len(url) > _MAX_URL:
        return f"it has {len(url):,} characters, and {_MAX_URL:,} are allowed"
    if not _PRINTABLE.fullmatch(url):
        return "it contains a space, a control character or a character that is not ASCII; write it as %XX"
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as it is looked up: a label of it has up to 63 letters
        if parts.scheme not in _PORTS or not parts.hostname or parts.port == 0:
            return "it is not an http:// or https:// URL with a host"
    except ValueError:  # a port that is not a number, an incomplete IPv6 address, an invalid host
        return "its host or port is invalid"
    if "@" in parts.netloc:
        return "it contains a user name or password; put a token into the path or query"
    return "it has a fragment (#), which is never sent" if "#" in url else None


def origin_of(url: str) -> str:
    """Return scheme, host and port of a checked URL, in lower case and without the scheme's usual port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def mask_notify_url(url: str) -> str:
    """Return a URL for people: its path and query, which may hold a token, as `***`."""
    if _fault_of(url):
        return "***"
    origin = origin_of(url)
    return origin if url.rstrip("/").lower() == origin else f"{origin}/***"


def check_allowed(entry: str) -> str:
    """Return an entry of `HUGQUEUE_NOTIFY_ALLOWED` as `origin_of` writes it.

    Raises:
        UsageError: it is neither an origin nor `*`.
    """
    if entry == ANY_ORIGIN:
        return entry
    if _fault_of(entry) or urlsplit(entry).path not in ("", "/") or "?" in entry or "*" in entry:
        raise UsageError(
            f"HUGQUEUE_NOTIFY_ALLOWED: expected origins such as http://hooks.internal:8080, or *, found {entry!r:.80}."
        )
    return origin_of(entry)


def secret_bytes(secret: str) -> bytes:
    """Return the key of a secret.

    Raises:
        UsageError: it is not one; the message does not show it.
    """
    text = secret.removeprefix(SECRET_PREFIX)
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if text == secret or len(key) not in _SECRET_BYTES:
        raise UsageError(
            f"HUGQUEUE_NOTIFY_SECRET: expected {SECRET_PREFIX} and {_SECRET_BYTES[0]} to {_SECRET_BYTES[-1]} bytes in "
            f'base64, as of `echo "{SECRET_PREFIX}$(openssl rand -base64 32)"`.'
        )
    return key
