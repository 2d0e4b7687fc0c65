"""Shared locations: the paths and URLs that workers may open.

Jobs and records are read from Redis and may name any file. A worker opens only files under `HUGQUEUE_SHARED`, which its
administrator sets. This module only decides; it opens no file.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SEPARATORS = re.compile(r"[/\\?#]")

#: Whether a process may open a path or a URL that a job names.
MayOpen = Callable[[str], bool]


def any_location(_: str) -> bool:
    """Return True: a user's own command opens whatever its user may."""
    return True


def is_url(name: str) -> bool:
    """Whether `name` is a URL such as `s3://bucket/key`, not a path of this machine."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.lower() != "file"


def strip_file_scheme(name: str) -> str:
    """Return the path of a `file://` URL; any other name as it is."""
    scheme, separator, rest = name.partition("://")
    return rest if separator and scheme.lower() == "file" else name


def local_path(name: str) -> Path:
    """Return the path of this machine that a path or a `file://` URL names."""
    return Path(strip_file_scheme(name))


def is_shared(name: str, shared: Sequence[str]) -> bool:
    """Return whether a path or a URL is under one of the shared directories or URLs.

    Links are resolved and `..` is refused, so that a name cannot lead out of what is shared. Chained URLs (fsspec's
    `simplecache::s3://...`) are refused: each of their parts may open something else.
    """
    if "::" in name or "\0" in name:
        return False
    try:
        if is_url(name):
            return any(is_url(location) and _is_under_url(name, location) for location in shared)
        return any(not is_url(location) and _is_under(local_path(name), local_path(location)) for location in shared)
    except ValueError:  # a lone surrogate in a path, an incomplete IPv6 address
        return False


def _is_under(path: Path, location: Path) -> bool:
    real, root = os.path.realpath(path), os.path.realpath(location)
    return path.is_absolute() and (real == root or real.startswith(root.rstrip("/") + "/"))


def _is_under_url(name: str, location: str) -> bool:
    found, root = urlsplit(name), urlsplit(location)
    if (found.scheme.lower(), found.netloc) != (root.scheme.lower(), root.netloc):
        return False
    path = unquote(found.path)
    if ".." in _SEPARATORS.split(unquote(name)):  # for some filesystems queries and fragments belong to the path
        return False
    base = unquote(root.path).rstrip("/")
    return path.rstrip("/") == base or path.startswith(base + "/")
