"""Directories for Unix sockets, whose paths may have only about a hundred bytes."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Bytes of a socket's path that every system accepts (macOS 103, Linux 107).
MAX_PATH_BYTES = 103
#: Directories to try if the path of the temporary directory (TMPDIR) is too long.
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - `mkdtemp` makes a private directory
#: Bytes that `mkdtemp` adds to a prefix, and those of a short name in the directory, with a margin.
_REST = 24


def fits_socket_path(path: Path) -> bool:
    """Whether the path is short enough for a socket."""
    return len(os.fsencode(path)) <= MAX_PATH_BYTES


@contextlib.contextmanager
def socket_directory(prefix: str) -> Iterator[Path]:
    """Yield a new private directory for a socket with a short name; it is removed at the end.

    Raises:
        OSError: no directory has a short enough path, or none can be written.
    """
    refused: OSError | None = None
    for base in (tempfile.gettempdir(), *_SHORT):
        if not fits_socket_path(Path(base, prefix + "x" * _REST)):
            continue
        try:
            directory = tempfile.TemporaryDirectory(prefix=prefix, dir=base, ignore_cleanup_errors=True)
        except OSError as error:
            refused = error
            continue
        with directory as path:
            yield Path(path)
        return
    raise refused or OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), tempfile.gettempdir())
