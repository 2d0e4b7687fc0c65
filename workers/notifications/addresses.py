"""Where notifications may go: with https to public addresses, and to what the worker's settings allow.

Anyone who can submit a job chooses its URL, and workers reach hosts that the outside does not. So the addresses are
checked, and the connection is made to one of these, whatever the host's name resolves to by then.
"""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from common.notifications import ANY_ORIGIN, origin_of

#: Private, although `ipaddress` calls most of it global before Python 3.11.10: some clouds have their metadata there.
_IETF = ipaddress.ip_network("192.0.0.0/24")
#: NAT64 (RFC 6052): the last four bytes are an IPv4 address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class NotAllowed(Exception):
    """Raised for a URL that this worker may not notify."""


def find_addresses(url: str, allowed: Sequence[str]) -> list[tuple[str, int]]:
    """Return the addresses and ports to which a notification for a URL may be sent, the preferred one first.

    Args:
        url: a checked URL.
        allowed: origins that may be notified with http too, and at addresses that are not public; `*` for any.

    Raises:
        NotAllowed: there are none.
        OSError: its host is not found.
    """
    parts, origin = urlsplit(url), origin_of(url)
    is_named = ANY_ORIGIN in allowed or origin in allowed
    if parts.scheme != "https" and not is_named:
        raise NotAllowed(f"only https is allowed, and the workers' HUGQUEUE_NOTIFY_ALLOWED does not name {origin}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys((str(address[0]), port) for *_, address in found)
    permitted = [address for address in addresses if is_named or is_public(address[0])]
    if not permitted:
        raise NotAllowed(
            f"{parts.hostname} has no public address, and the workers' HUGQUEUE_NOTIFY_ALLOWED does not name {origin}"
        )
    return permitted


def is_public(address: str) -> bool:
    """Whether an address is one of the Internet: not private, loopback, link-local, shared, multicast or reserved."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (inner := _embedded(ip)) is not None:
        ip = inner
    elif isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip in _IETF)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to; None if it leads to none."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(ip.packed[-4:])
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
