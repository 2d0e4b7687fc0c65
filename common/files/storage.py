"""Files under an address: a directory of this machine, or whatever fsspec opens, as `s3://bucket/jobs`.

A file is written whole or not at all: aside and renamed in a directory, by one request to an object store. Which
addresses a process may open is not decided here (`common.shared`).
"""

import contextlib
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from common.errors import StorageError
from common.files.access import is_in_bucket, open_file_system, storage_errors
from common.shared import is_address, local_path


def open_storage(address: str) -> "Storage":
    """Return the files under a path or an address.

    Raises:
        StorageError: the address is of a kind that cannot be opened here.
    """
    return RemoteStorage(address) if is_address(address) else LocalStorage(local_path(address))


class Storage(ABC):
    """Files under one address, by their names below it. Every method raises `StorageError` when it cannot be used."""

    @abstractmethod
    def check(self) -> None:
        """Check that files could be written here, as far as that is seen without writing any."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None where there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; one of that name is replaced."""

    @abstractmethod
    def move(self, source: str, target: str) -> bool:
        """Put a file in the place of another; return False if it is not there (any more)."""

    @abstractmethod
    def remove(self, *names: str) -> None:
        """Remove files; those that are not there are left out."""

    @abstractmethod
    def prune(self, folder: str) -> None:
        """Remove a folder, and those it lies in, unless something is in them."""

    @abstractmethod
    def remove_all(self) -> None:
        """Remove everything under the address."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files directly in a folder, sorted; none where there is no such folder."""


class LocalStorage(Storage):
    """Files in a directory, which is made when the first one is written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        """Check that the directory, or the nearest one above it that is there, may be written."""
        with self._errors("write", ""):
            there = next(place for place in (self._root, *self._root.absolute().parents) if place.exists())
            if not there.is_dir():
                raise NotADirectoryError(f"{there} is no directory")
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(f"{there} may not be written by this user")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None where there is none."""
        with self._errors("read", name):
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file aside, have the disk take it, and rename it."""
        target = self._root / name
        aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        with self._errors("write", name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                aside.replace(target)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise

    def move(self, source: str, target: str) -> bool:
        """Rename a file."""
        with self._errors("write", target):
            (self._root / target).parent.mkdir(parents=True, exist_ok=True)
            try:
                (self._root / source).replace(self._root / target)
            except FileNotFoundError:
                return False
        return True

    def remove(self, *names: str) -> None:
        """Remove files."""
        for name in names:
            with self._errors("remove", name):
                (self._root / name).unlink(missing_ok=True)

    def prune(self, folder: str) -> None:
        """Remove a folder, and those it lies in, unless something is in them."""
        place = self._root / folder
        with contextlib.suppress(OSError):
            while place != self._root:
                place.rmdir()
                place = place.parent

    def remove_all(self) -> None:
        """Remove the directory."""
        with self._errors("remove", ""), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._root)

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files directly in a folder."""
        with self._errors("list", folder):
            try:
                entries = sorted(entry.name for entry in os.scandir(self._root / folder) if entry.is_file())
            except FileNotFoundError:
                return []
        return [name for name in entries if not name.startswith(".")]  # those aside belong to nobody yet

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"Cannot {verb} {self._root / name}: {error.strerror or error}.") from error


class RemoteStorage(Storage):
    """Files at an address that fsspec knows. Credentials are those of its own library, as AWS_ACCESS_KEY_ID."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._files, self._base = open_file_system(self._address)

    def check(self) -> None:
        """Check that the bucket is there, and open to these credentials."""
        self.names()  # says what is wrong with the credentials
        bucket = self._base.partition("/")[0]
        with storage_errors("write", self._address):
            if is_in_bucket(self._address) and not self._files.exists(bucket):
                raise StorageError(f"Cannot write {self._address}: there is no bucket {bucket}.")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None where there is none."""
        with storage_errors("read", f"{self._address}/{name}"):
            try:
                data: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file by one request."""
        with storage_errors("write", f"{self._address}/{name}"):
            if not is_in_bucket(self._address):
                self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(self._path(name), data)

    def move(self, source: str, target: str) -> bool:
        """Copy a file and remove it: object stores know no renaming."""
        with storage_errors("write", f"{self._address}/{target}"):
            try:
                self._files.cp_file(self._path(source), self._path(target))
            except FileNotFoundError:
                return False
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(source))
        return True

    def remove(self, *names: str) -> None:
        """Remove files, one request each."""
        for name in names:
            with storage_errors("remove", f"{self._address}/{name}"), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

    def prune(self, folder: str) -> None:
        """Nothing is to be done: object stores have no folders."""

    def remove_all(self) -> None:
        """Remove everything whose name begins with the address."""
        with storage_errors("remove", self._address), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._base, recursive=True)

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files directly in a folder."""
        with storage_errors("list", f"{self._address}/{folder}"):
            try:
                entries = self._files.ls(self._path(folder).rstrip("/"), detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"
