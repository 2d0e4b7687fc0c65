"""Files that appear whole or not at all: written aside in the same directory, then renamed.

An existing file stays as it was until the new one is complete and on the disk, and the new one gets its mode; a link
stays a link.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import HugqueueError, path_errors


class AtomicFile:
    """A file under way to `path`. `keep` puts it there; without it, `discard` leaves no trace."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path_errors(f"Cannot write {path}"):
            self._target = path.resolve()  # a link goes on pointing to where it points
        # Opened anew, not by tempfile, so that the user's umask decides who may read it.
        self._temporary = self._target.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
        with write_errors(path):
            self.stream: BinaryIO = self._temporary.open("xb")
            _copy_owner_and_mode(self._target, self.stream.fileno())

    def keep(self) -> None:
        """Put the file in its place.

        Raises:
            HugqueueError: the disk does not take it.
        """
        with write_errors(self.path):
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            self._temporary.replace(self._target)
            _sync_directory(self._target.parent)

    def discard(self) -> None:
        """Remove what was written so far; after `keep` there is nothing to remove."""
        with suppress(OSError):  # closing flushes, and a full disk says so again: this file is unwanted anyhow
            self.stream.close()
        self._temporary.unlink(missing_ok=True)


def _copy_owner_and_mode(old: Path, new: int) -> None:
    """Give the new file the owner and the mode of the one that it replaces, if there is one."""
    try:
        found = old.stat()
    except FileNotFoundError:
        return
    with suppress(OSError):  # only root gives files away; a group of one's own can be given
        os.fchown(new, found.st_uid if os.geteuid() == 0 else -1, found.st_gid)
    with suppress(OSError):  # some file systems (FAT, network shares) have no modes
        os.fchmod(new, stat.S_IMODE(found.st_mode))


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise HugqueueError(f"Cannot write {path}: {error.strerror or error}.") from error


def _sync_directory(directory: Path) -> None:
    """Make the rename last through a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
