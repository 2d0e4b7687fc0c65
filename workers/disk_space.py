"""What errors say of the disk: that it is full (not every library says so with an `OSError`), or is not for us."""

import errno
import os
import tempfile
from pathlib import Path

#: What the system says where there is no room, or no more of the user's share of it.
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
#: What it says of a place that it will not give us, however often we ask: as this user, by that name, with this setup.
PERMANENT_ERRNOS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
)
_WORDS = tuple(os.strerror(number) for number in DISK_FULL_ERRNOS)
#: Bytes that a disk has to take to have room: much less than any checkpoint, more than what a half one leaves over.
_PROBE_BYTES = 1 << 20


def is_disk_full(error: BaseException, directory: Path) -> bool:
    """Whether `error` came because `directory`, into which a checkpoint or a model was written, has no room.

    safetensors has an error of its own that holds the words of the system, and torch one that says no more than that
    its stream is broken (`basic_ios::clear: iostream error`): then the disk itself is asked.
    """
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return True
    if any(words in str(error) for words in _WORDS):
        return True
    return isinstance(error, RuntimeError) and not _has_space(directory)


def _has_space(directory: Path) -> bool:
    """Whether a file can be written there: a quota does not show in what the disk as a whole has free."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            written = file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
            return written == _PROBE_BYTES
    except OSError as error:
        return error.errno not in DISK_FULL_ERRNOS
