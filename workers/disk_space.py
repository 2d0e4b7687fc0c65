"""Disk errors: whether the disk is full, not always reported by an `OSError`, and which are permanent."""

import errno
import os
import tempfile
from pathlib import Path

#: Errors of a full disk or an exhausted quota.
DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Errors that another attempt does not change: permissions, and paths that cannot exist.
PERMANENT_ERRNOS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
)
_WORDS = tuple(os.strerror(number) for number in DISK_FULL_ERRNOS)
#: Bytes written to see whether a disk has space: less than any checkpoint, more than a partial one leaves.
_PROBE_BYTES = 1 << 20


def is_disk_full(error: BaseException, directory: Path) -> bool:
    """Whether `error` came from a full disk while a checkpoint or a model was written to `directory`.

    safetensors raises an error of its own with the system's message; torch only reports a broken stream
    (`basic_ios::clear: iostream error`), so a test file tells whether the disk is full.
    """
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return True
    if any(words in str(error) for words in _WORDS):
        return True
    return isinstance(error, RuntimeError) and not _has_space(directory)


def _has_space(directory: Path) -> bool:
    """Whether a file can be written there: the free space of a disk does not show a quota."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            written = file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
            return written == _PROBE_BYTES
    except OSError as error:
        return error.errno not in DISK_FULL_ERRNOS
