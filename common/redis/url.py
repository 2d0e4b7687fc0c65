"""The URL of Redis: checking it, masking its password, and its TLS options.

One URL serves redis-py, kombu and Flower, which each parse it in their own way. Options that not all of them
understand are refused here, before one of them fails with a message that shows the password.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from common.errors import UsageError

#: Options allowed after the `?`, by scheme.
_OPTIONS: Mapping[str, frozenset[str]] = {
    "redis": frozenset(),
    "rediss": frozenset({"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}),
    "redis+socket": frozenset({"virtual_host"}),
}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CERTIFICATES = ("required", "none")
#: Everything up to the last `@`, except the scheme and the user's name.
_SECRET = re.compile(r"^(\w[\w+.-]*://(?:[^:@/]*:)?)?.*(?=@)", re.DOTALL)
_EXPECTED = "Expected redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// (TLS) or redis+socket:///PATH"


def mask_url(url: str) -> str:
    """Return the URL with its password replaced by `***`, however malformed it is."""
    return _SECRET.sub(r"\1***", url)


def check_redis_url(url: str) -> str:
    """Return the URL; one with TLS says that certificates are checked, unless it says that they are not.

    Raises:
        UsageError: it is not a URL of Redis, or has an unknown option.
    """
    scheme, separator, rest = url.partition("://")
    url = f"{scheme.lower()}{separator}{rest}"  # as urlsplit does, unlike redis-py and kombu
    if not _is_redis_url(url):
        raise UsageError(
            f"{mask_url(url)} is not a Redis URL. {_EXPECTED}; in a password, everything except letters and digits is "
            "written as %XX."
        )
    parts = urlsplit(url)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if fault := _fault_of_option(parts.scheme, name, value):
            raise UsageError(f"{mask_url(url)}: {fault}.")
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
        # redis-py checks certificates by default; kombu does not.
        return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, "ssl_cert_reqs=required")))))
    return url


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as it is looked up: a label of it has up to 63 letters
        if parts.scheme not in _OPTIONS or parts.port == 0:
            return False
    except ValueError:  # a port that is not a number, half an IPv6 address, an impossible host
        return False
    # `@` and `#` come from a password that is not escaped; kombu takes `;` for the start of a second URL.
    if parts.fragment or "@" in parts.path + parts.query or ";" in url:
        return False
    return len(parts.path) > 1 if parts.scheme == "redis+socket" else re.fullmatch(r"(/\d*)?", parts.path) is not None


def _fault_of_option(scheme: str, name: str, value: str) -> str | None:
    if name not in _OPTIONS[scheme]:
        return f"unknown option {name!r}; {scheme}:// takes {', '.join(sorted(_OPTIONS[scheme])) or 'none'}"
    if name == "ssl_cert_reqs" and value not in _CERTIFICATES:
        return f"ssl_cert_reqs must be required or none, found {value!r}"
    if name in _FILES and not os.path.isfile(value):  # noqa: PTH113 - false, too, for a name that the system refuses
        return f"{name} must be a file, and {value!r} does not exist"
    return None


def tls_options(url: str) -> dict[str, Any] | None:
    """Return the TLS options of a checked URL, as Celery's `broker_use_ssl`; None without TLS."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return None
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "f", "false", "n", "no")
    return options
