"""Which version of a distribution is installed."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # its metadata is a file, read and parsed whole each time
def installed_version(distribution: str) -> str | None:
    """Return its version, None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
