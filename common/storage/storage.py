"""Storage: files in a directory of this machine, or at a URL that fsspec opens (`s3://bucket/jobs`).

A file is written complete or not at all: by `AtomicFile` in a directory, by one request to an object store. Which
locations a process may open is decided elsewhere (`common.storage.locations`).
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from common.errors import StorageError
from common.storage.atomic import AtomicFile
from common.storage.filesystem import is_object_store, open_filesystem, storage_errors
from common.storage.locations import is_url, local_path


class LocalStorage:
    """Files in a directory, which is created with the first one. Every method raises `StorageError`.

    Links below the root are not followed, since whoever else may write there could lead to any file. The folders of a
    name are opened one by one, so that none can be replaced by a link between the check and its use.
    """

    def __init__(self, root: Path, folder: str = "") -> None:
        self._root = root
        self._folder = folder

    def check(self) -> None:
        """Check that the directory, or the nearest existing one above it, can be written."""
        with self._errors("write", ""):
            existing = next(path for path in (self._root, *self._root.absolute().parents) if path.exists())
            if not existing.is_dir():
                raise NotADirectoryError(f"{existing} is not a directory")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise PermissionError(f"this user cannot write to {existing}")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None if it does not exist."""
        with self._errors("read", name):
            try:
                with self._open_parent(name) as (folder, file):
                    found = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            except FileNotFoundError:
                return None
            with os.fdopen(found, "rb") as stream:
                if not stat.S_ISREG(os.fstat(found).st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file")
                return stream.read()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, complete or not at all."""
        opened = self._open_parent(name, make=True)
        with self._errors("write", name), opened as (folder, file), AtomicFile(Path(file), folder) as atomic:
            atomic.stream.write(data)

    def move(self, source: str, target: str) -> bool:
        """Rename a file; return False if it does not exist."""
        with self._errors("write", target), self._open_parent(target, make=True) as (target_folder, target_file):
            try:
                with self._open_parent(source) as (folder, file):
                    os.replace(file, target_file, src_dir_fd=folder, dst_dir_fd=target_folder)
            except FileNotFoundError:
                return False
        return True

    def remove(self, *names: str) -> None:
        """Remove files; missing ones are ignored."""
        for name in names:
            missing = contextlib.suppress(FileNotFoundError)
            with self._errors("remove", name), missing, self._open_parent(name) as (folder, file):
                os.unlink(file, dir_fd=folder)

    def prune(self, folder: str) -> None:
        """Remove a folder and those above it, as far as they are empty."""
        path = PurePosixPath(folder)
        with contextlib.suppress(OSError):
            while path.name:
                with self._open_parent(str(path)) as (above, name):
                    os.rmdir(name, dir_fd=above)
                path = path.parent

    def remove_all(self) -> None:
        """Remove the directory."""
        with self._errors("remove", ""), contextlib.suppress(FileNotFoundError):
            if not self._folder:
                _remove_tree(str(self._root))
                return
            with self._open_parent("") as (above, name):
                _remove_tree(name, above)

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files directly in a folder, sorted; none if it does not exist."""
        with self._errors("list", folder):
            try:
                with self._open_parent(f"{folder}/.") as (opened, _), os.scandir(opened) as entries:
                    found = sorted(entry.name for entry in entries if entry.is_file() or entry.is_symlink())
            except FileNotFoundError:
                return []
        return [name for name in found if not name.startswith(".")]  # temporary files

    @contextlib.contextmanager
    def _open_parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder of a name, created if `make`; yield its descriptor and the last part of the name."""
        *folders, last = f"{self._folder}/{name}".strip("/").split("/")
        if ".." in folders or last == "..":
            raise OSError(errno.EINVAL, "the name leads out of the directory")
        if make:
            self._root.mkdir(parents=True, exist_ok=True)
        opened = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in filter(None, folders):
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, dir_fd=opened)
                below = _open_directory(folder, opened)
                os.close(opened)
                opened = below
            yield opened, last
        finally:
            os.close(opened)

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = self._root / self._folder / name
            raise StorageError(f"Cannot {verb} {path}: {error.strerror or error}.") from error


def _remove_tree(name: str, above: int | None = None) -> None:
    """Remove a directory of the one that is open as `above`. Others may be removing it too.

    `rmtree` gives up at the first file that another process has removed before it, while that one is still at work.

    Raises:
        FileNotFoundError: It is gone.
    """
    while os.stat(name, dir_fd=above, follow_symlinks=False):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(name, dir_fd=above)


def _open_directory(name: str, above: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    except NotADirectoryError:
        if stat.S_ISLNK(os.lstat(name, dir_fd=above).st_mode):
            raise OSError(errno.ELOOP, f"{name} is a link, and links are not followed here") from None
        raise


class RemoteStorage:
    """Files at a URL that fsspec opens. Every method raises `StorageError`.

    Credentials are those of the URL's own library, such as AWS_ACCESS_KEY_ID.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._files, self._base = open_filesystem(self._url)

    def check(self) -> None:
        """Check that the bucket exists and that the credentials open it."""
        self.names()  # fails with what is wrong with the credentials
        bucket = self._base.partition("/")[0]
        with storage_errors("write", self._url):
            if is_object_store(self._url) and not self._files.exists(bucket):
                raise StorageError(f"Cannot write {self._url}: there is no bucket {bucket}.")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None if it does not exist."""
        with storage_errors("read", f"{self._url}/{name}"):
            try:
                data: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file by one request."""
        with storage_errors("write", f"{self._url}/{name}"):
            self._make_parent(name)
            self._files.pipe_file(self._path(name), data)

    def move(self, source: str, target: str) -> bool:
        """Copy a file and remove the original, since object stores cannot rename; return False if it does not exist."""
        with storage_errors("write", f"{self._url}/{target}"):
            try:
                self._files.cp_file(self._path(source), self._path(target))
            except FileNotFoundError:
                return False
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(source))
        return True

    def remove(self, *names: str) -> None:
        """Remove files, one request each; missing ones are ignored."""
        for name in names:
            with storage_errors("remove", f"{self._url}/{name}"), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

    def prune(self, folder: str) -> None:
        """Do nothing: object stores have no folders."""

    def remove_all(self) -> None:
        """Remove everything under the URL."""
        self.remove_tree("")

    def remove_tree(self, folder: str) -> None:
        """Remove everything in a folder."""
        with storage_errors("remove", f"{self._url}/{folder}"), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._path(folder).rstrip("/"), recursive=True)

    def upload(self, source: Path, name: str) -> None:
        """Copy a file of this machine to `name`."""
        with storage_errors("write", f"{self._url}/{name}"):
            self._make_parent(name)
            self._files.put_file(str(source), self._path(name))

    def download(self, name: str, target: Path) -> None:
        """Copy a file to this machine."""
        with storage_errors("read", f"{self._url}/{name}"):
            self._files.get_file(self._path(name), str(target))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the files in a folder, at any depth: their names in it, and their sizes in bytes."""
        with storage_errors("list", f"{self._url}/{folder}"):
            path = self._files._strip_protocol(self._path(folder))
            found = self._files.find(path, detail=True)
        return {name.removeprefix(path).lstrip("/"): entry["size"] for name, entry in found.items()}

    def folders(self) -> list[str]:
        """Return the names of the folders directly under the URL, sorted."""
        return self._list("", "directory")

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files directly in a folder."""
        return self._list(folder, "file")

    def _list(self, folder: str, kind: str) -> list[str]:
        with storage_errors("list", f"{self._url}/{folder}"):
            try:
                entries = self._files.ls(self._path(folder).rstrip("/"), detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == kind)

    def _make_parent(self, name: str) -> None:
        if not is_object_store(self._url):
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"


#: Files under one path or URL, by their names below it.
Storage = LocalStorage | RemoteStorage


def open_storage(url: str, folder: str = "") -> Storage:
    """Return the files under a path or a URL, or in a folder below it.

    Raises:
        StorageError: a library for this kind of URL is not installed.
    """
    return RemoteStorage(f"{url.rstrip('/')}/{folder}") if is_url(url) else LocalStorage(local_path(url), folder)
