"""Places for Unix sockets, whose paths may only be about a hundred bytes long."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Bytes of a socket's path that every system takes (macOS 103, Linux 107).
MAX_PATH_BYTES = 103
#: Where to look for room if the temporary directory of the environment (TMPDIR) is too deep.
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - `mkdtemp` makes a directory that is ours alone
#: Bytes that `mkdtemp` adds to a prefix, and those of a short name in the directory, with a margin.
_REST = 24


def fits_socket_path(path: Path) -> bool:
    """Whether a socket can be made under that path."""
    return len(os.fsencode(path)) <= MAX_PATH_BYTES


@contextlib.contextmanager
def socket_directory(prefix: str) -> Iterator[Path]:
    """Yield a new directory, ours alone and removed at the end, in which a socket of a short name can be made.

    Raises:
        OSError: there is no such place, or nothing can be written there.
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
