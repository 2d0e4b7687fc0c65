"""The address of Redis: what it may look like, what of it may be shown, and what it says about TLS.

One address serves redis-py, kombu and Flower, which read it each in their own way: what they do not all understand
is refused here, before one of them fails over it in words that show the password.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from common.errors import UsageError

#: What may stand behind the `?`, by scheme.
_OPTIONS: Mapping[str, frozenset[str]] = {
    "redis": frozenset(),
    "rediss": frozenset({"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}),
    "redis+socket": frozenset({"virtual_host"}),
}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CERTIFICATES = ("required", "none")
#: Everything up to the last `@`, but for the scheme and a user's name.
_SECRET = re.compile(r"^(\w[\w+.-]*://(?:[^:@/]*:)?)?.*(?=@)", re.DOTALL)
_EXPECTED = "Expected redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// (TLS) or redis+socket:///PATH"


def mask_url(address: str) -> str:
    """Return the address with its password replaced by `***`, however badly it is written."""
    return _SECRET.sub(r"\1***", address)


def check_redis_url(address: str) -> str:
    """Return the address; one with TLS says that certificates are checked, unless it says that they are not.

    Raises:
        UsageError: it is none of a Redis, or holds an option that nobody here understands.
    """
    scheme, separator, rest = address.partition("://")
    address = f"{scheme.lower()}{separator}{rest}"  # which urlsplit does as well, and redis-py and kombu do not
    try:
        parts = urlsplit(address)
        (parts.hostname or "").encode("idna")  # as it is looked up: a name in it has up to 63 letters
        valid = parts.scheme in _OPTIONS and parts.port != 0 and _names_a_database(parts.scheme, parts.path)
    except ValueError:  # a port that is no number, half an IPv6 address, a host that cannot be one
        valid = False
    # `@` and `#` come from a password that is not written as it should be; kombu takes `;` for a second address.
    if not valid or parts.fragment or "@" in parts.path + parts.query or ";" in address:
        raise UsageError(
            f"{mask_url(address)} is not an address of Redis. {_EXPECTED}; in a password, "
            "everything but letters and digits is written as %XX."
        )
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        fault = _fault_of_option(parts.scheme, name, value)
        if fault:
            raise UsageError(f"{mask_url(address)}: {fault}.")
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
        # redis-py checks without being told; kombu does not.
        return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, "ssl_cert_reqs=required")))))
    return address


def _fault_of_option(scheme: str, name: str, value: str) -> str | None:
    if name not in _OPTIONS[scheme]:
        return f"unknown option {name!r}; {scheme}:// takes {', '.join(sorted(_OPTIONS[scheme])) or 'none'}"
    if name == "ssl_cert_reqs" and value not in _CERTIFICATES:
        return f"ssl_cert_reqs must be required or none, found {value!r}"
    if name in _FILES and not os.path.isfile(value):  # noqa: PTH113 - false, too, for a name that the system refuses
        return f"{name} must name a file, and there is none at {value!r}"
    return None


def _names_a_database(scheme: str, path: str) -> bool:
    return len(path) > 1 if scheme == "redis+socket" else re.fullmatch(r"(/\d*)?", path) is not None


def tls_options(address: str) -> dict[str, Any] | None:
    """Return what a checked address says about TLS, as Celery's `broker_use_ssl`; None without TLS."""
    parts = urlsplit(address)
    if parts.scheme != "rediss":
        return None
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "f", "false", "n", "no")
    return options
