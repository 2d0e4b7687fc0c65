"""Opening what an address names, for everything that reads or writes files: fsspec, and its errors in our words."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import IO, Any

from common.distribution import install_command
from common.errors import NoSuchStorage, StorageError
from common.storage.locations import is_url, local_path

#: Kinds of addresses that begin with the name of a bucket.
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")


def is_object_store(url: str) -> bool:
    """Whether a place knows buckets and no folders: to make a missing one would make a bucket of a mistyped name."""
    return url.partition("://")[0].lower() in _BUCKET_SCHEMES


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it.

    Raises:
        NoSuchStorage: fsspec, or what it needs for this kind of address, is not installed.
    """
    try:
        import fsspec

        # What was listed before does not count: others write there too.
        options = {"use_listings_cache": False} if is_object_store(url) else {}
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise NoSuchStorage(
            f"{url}: {str(error).rstrip('.')}. For addresses, install fsspec and what that kind needs "
            f"(for s3://: {install_command('s3')})."
        ) from error
    return found


def glob(pattern: str) -> list[str]:
    """Return the addresses of the files that an address with `*` in it stands for, sorted.

    Raises:
        StorageError: its place cannot be looked at.
    """
    with storage_errors("list", pattern):
        files, path = open_filesystem(pattern)
        return sorted(str(files.unstrip_protocol(name)) for name in files.glob(path))


def open_stream(name: str) -> IO[bytes]:
    """Open a path or an address to be read from any place in it.

    Raises:
        StorageError: it cannot be opened.
    """
    with storage_errors("read", name):
        if not is_url(name):
            _stat_file(name)
            return local_path(name).open("rb")
        files, path = open_filesystem(name)
        stream: IO[bytes] = files.open(path, "rb")
        return stream


def file_version(name: str) -> tuple[int, str]:
    """Return the size of a file in bytes, and what changes when its contents do (a time, an entity tag).

    Raises:
        StorageError: it is not there, or cannot be looked at.
    """
    with storage_errors("read", name):
        if not is_url(name):
            found = _stat_file(name)
            return found.st_size, str(found.st_mtime_ns)
        files, path = open_filesystem(name)
        info = files.info(path)
    if info.get("type") == "directory":
        raise StorageError(f"{name} is a directory; name the files in it, as {name.rstrip('/')}/*.")
    tags = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created", "blob_id"))
    return int(info["size"]), str(next((tag for tag in tags if tag), ""))


def _stat_file(name: str) -> os.stat_result:
    found = local_path(name).stat()
    if not stat.S_ISREG(found.st_mode):  # to read from a pipe is to wait for whoever writes into it
        raise StorageError(f"{name} is no file but something else; name the files in it.")
    return found


@contextlib.contextmanager
def storage_errors(verb: str, name: str) -> Iterator[None]:
    """Turn whatever a file system raises into `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"Cannot {verb} {name}: there is no such file.") from error
    except Exception as error:  # the boundary: each of fsspec's file systems has errors of its own library
        raise StorageError(f"Cannot {verb} {name}: {str(error).rstrip('.') or type(error).__name__}.") from error
