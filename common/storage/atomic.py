"""Atomic file writes: a file appears complete or not at all.

The bytes go to a temporary file in the same directory, are flushed to the disk, and the file is renamed. An existing
file stays as it is until then, and the new one takes over its owner and its mode.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from common.errors import HugqueueError, path_errors


class AtomicFile:
    """A file that is being written. `commit` moves it to its path; otherwise `discard` leaves no trace.

    As a context manager it commits if the block ends without an exception.

    Args:
        path: the file's path. If it is a link, its target is replaced.
        dir_fd: descriptor of an open directory, in which `path` is a plain name; a link of that name is replaced.

    Raises:
        OSError: from any method, if the system refuses.
        UsageError: the path's links form a loop.
    """

    def __init__(self, path: Path, dir_fd: int | None = None) -> None:
        self._dir_fd = dir_fd
        with path_errors(f"Cannot write {path}"):
            self._target = path.resolve() if dir_fd is None else path
        # Not with tempfile, whose files only their owner may read: the user's umask applies.
        self._temporary = self._target.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=dir_fd)
        self.stream: BinaryIO = os.fdopen(descriptor, "wb")
        if dir_fd is None:
            _copy_owner_and_mode(self._target, descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()

    def commit(self) -> None:
        """Move the file to its path."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        os.replace(self._temporary, self._target, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        if self._dir_fd is None:
            _sync_directory(self._target.parent)

    def discard(self) -> None:
        """Remove what was written so far; does nothing after `commit`."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self.stream.close()
        with suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._dir_fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Write an internal file, complete or not at all. A link of that name is replaced, not followed.

    Raises:
        OSError: the system refuses.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with AtomicFile(Path(path.name), directory) as file:
            file.stream.write(data)
    finally:
        os.close(directory)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `HugqueueError` that names the file."""
    try:
        yield
    except OSError as error:
        raise HugqueueError(f"Cannot write {path}: {error.strerror or error}.") from error


def _copy_owner_and_mode(old: Path, new: int) -> None:
    try:
        found = old.stat()
    except FileNotFoundError:
        return
    with suppress(OSError):  # only root may give files away; a group of one's own can be given
        os.fchown(new, found.st_uid if os.geteuid() == 0 else -1, found.st_gid)
    with suppress(OSError):  # some file systems (FAT, network shares) have no modes
        os.fchmod(new, stat.S_IMODE(found.st_mode))


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
