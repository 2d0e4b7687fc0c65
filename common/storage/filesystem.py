"""Filesystems: opening paths and URLs through fsspec, and turning its errors into `StorageError`."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import IO, Any

from common.distribution import install_command
from common.errors import MissingStorageLibrary, StorageError
from common.storage.locations import is_url, local_path

#: Schemes of URLs that begin with the name of a bucket.
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")


def is_object_store(url: str) -> bool:
    """Whether a URL names a bucket, which must exist: creating it would turn a typo into a bucket."""
    return url.partition("://")[0].lower() in _BUCKET_SCHEMES


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's filesystem for a URL, and the path in it.

    Raises:
        MissingStorageLibrary: fsspec, or the library that it needs for this scheme, is not installed.
    """
    try:
        import fsspec

        # No cached listings: other machines write there too.
        options = {"use_listings_cache": False} if is_object_store(url) else {}
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        scheme, extra = ("hf", "hub") if url.startswith("hf:") else ("s3", "s3")
        raise MissingStorageLibrary(
            f"{url}: {str(error).rstrip('.')}. URLs need fsspec and a library for their scheme "
            f"(for {scheme}://: {install_command(extra)})."
        ) from error
    return found


def glob(pattern: str) -> list[str]:
    """Return the URLs of the files that match a URL with `*` in it, sorted.

    Raises:
        StorageError: it cannot be listed.
    """
    with storage_errors("list", pattern):
        files, path = open_filesystem(pattern)
        return sorted(str(files.unstrip_protocol(name)) for name in files.glob(path))


def open_stream(name: str) -> IO[bytes]:
    """Open a path or a URL for reading and seeking.

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
    """Return the size of a file in bytes, and a value that changes with its contents (a time, an entity tag).

    Raises:
        StorageError: it does not exist, or its metadata cannot be read.
    """
    with storage_errors("read", name):
        if not is_url(name):
            found = _stat_file(name)
            return found.st_size, str(found.st_mtime_ns)
        files, path = open_filesystem(name)
        info = files.info(path)
    if info.get("type") == "directory":
        raise StorageError(f"{name} is a directory; name the files in it, such as {name.rstrip('/')}/*.")
    tags = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created", "blob_id"))
    return int(info["size"]), str(next((tag for tag in tags if tag), ""))


def _stat_file(name: str) -> os.stat_result:
    found = local_path(name).stat()
    if not stat.S_ISREG(found.st_mode):  # reading from a pipe would wait for its writer
        raise StorageError(f"{name} is not a regular file.")
    return found


@contextlib.contextmanager
def storage_errors(verb: str, name: str) -> Iterator[None]:
    """Turn whatever a filesystem raises into `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"Cannot {verb} {name}: there is no such file.") from error
    except Exception as error:  # a boundary: each fsspec filesystem raises the errors of its own library
        raise StorageError(f"Cannot {verb} {name}: {str(error).rstrip('.') or type(error).__name__}.") from error
