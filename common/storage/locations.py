"""Which files and addresses workers open by themselves: those under what they were told is shared, nothing else.

Jobs and records come out of Redis and name what they like; a worker compares that with `HUGQUEUE_SHARED`, the list its
own administrator wrote. Nothing here opens anything.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SEPARATORS = re.compile(r"[/\\?#]")

#: Whether a process may open a path or an address that a job names.
MayOpen = Callable[[str], bool]


def is_url(name: str) -> bool:
    """Whether `name` is an address with a scheme, as `s3://bucket/key`, and no path of this machine."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.lower() != "file"


def strip_file_scheme(name: str) -> str:
    """Return the path that a `file://` address means; any other name as it is."""
    scheme, separator, rest = name.partition("://")
    return rest if separator and scheme.lower() == "file" else name


def local_path(name: str) -> Path:
    """Return the path that `name` means on this machine, be it a path or a `file://` address."""
    return Path(strip_file_scheme(name))


def is_shared(name: str, shared: Sequence[str]) -> bool:
    """Return whether a path or an address lies under one of the shared directories or addresses.

    Links are followed and `..` is never taken, so that a name cannot lead out of what is shared. Chained addresses
    (fsspec's `simplecache::s3://...`) are refused: each part of them may open something else.
    """
    if "::" in name or "\0" in name:
        return False
    try:
        if is_url(name):
            return any(is_url(location) and _is_under_url(name, location) for location in shared)
        return any(not is_url(location) and _is_under(local_path(name), local_path(location)) for location in shared)
    except ValueError:  # half a character in a path, half an address of IPv6
        return False


def _is_under(path: Path, location: Path) -> bool:
    real, root = os.path.realpath(path), os.path.realpath(location)
    return path.is_absolute() and (real == root or real.startswith(root.rstrip("/") + "/"))


def _is_under_url(name: str, location: str) -> bool:
    found, root = urlsplit(name), urlsplit(location)
    if (found.scheme.lower(), found.netloc) != (root.scheme.lower(), root.netloc):
        return False
    path = unquote(found.path)
    if ".." in _SEPARATORS.split(unquote(name)):  # what takes no queries and fragments takes them for the path
        return False
    base = unquote(root.path).rstrip("/")
    return path.rstrip("/") == base or path.startswith(base + "/")
