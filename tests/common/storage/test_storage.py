"""Files at a location: complete or not at all, in a directory and at a URL that fsspec opens."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import MissingStorageLibrary, StorageError
from common.storage.filesystem import file_version, open_stream
from common.storage.storage import Storage, open_storage


@pytest.fixture(params=["directory", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "store")
        return
    yield f"memory://{tmp_path.name}/store"
    open_storage(f"memory://{tmp_path.name}").remove_all()


@pytest.fixture
def storage(location: str) -> Storage:
    return open_storage(location)


def test_a_file_is_read_as_it_was_written(storage: Storage) -> None:
    assert storage.read("a/b.bin") is None
    storage.write("a/b.bin", b"\0one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"


def test_a_file_is_moved_once(storage: Storage) -> None:
    storage.write("aside/x", b"1")
    assert storage.move("aside/x", "x")
    assert not storage.move("aside/x", "x")
    assert storage.read("x") == b"1"
    assert storage.read("aside/x") is None


def test_only_the_files_of_a_folder_are_listed(storage: Storage) -> None:
    for name in ("b", "a", "sub/c"):
        storage.write(name, b"")
    assert storage.names() == ["a", "b"]
    assert storage.names("sub") == ["c"]
    assert storage.names("nowhere") == []


def test_removing_a_missing_file_is_not_an_error(storage: Storage) -> None:
    storage.write("a", b"")
    storage.remove("a", "a", "sub/b")
    storage.prune("sub")
    storage.remove_all()
    storage.remove_all()
    assert storage.names() == []


def test_a_file_can_be_read_from_its_middle(storage: Storage, location: str) -> None:
    storage.write("a", b"0123456789")
    with open_stream(f"{location}/a") as stream:
        stream.seek(4)
        assert stream.read(3) == b"456"
    size, version = file_version(f"{location}/a")
    assert size == 10
    assert version


def test_a_missing_file_is_named(location: str) -> None:
    with pytest.raises(StorageError, match=f"Cannot read {location}/nothing: there is no such file"):
        open_stream(f"{location}/nothing")
    with pytest.raises(StorageError, match="there is no such file"):
        file_version(f"{location}/nothing")


def test_a_path_that_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StorageError, match="is not a regular file"):
            file_version(str(name))
        with pytest.raises(StorageError, match="is not a regular file"):
            open_stream(str(name))


def test_an_address_that_nothing_here_opens_says_what_to_install() -> None:
    with pytest.raises(MissingStorageLibrary, match=r"nosuch://x: .*need fsspec") as caught:
        open_storage("nosuch://x")
    assert caught.value.code == "missing_library"  # by which a worker leaves the job to others


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.write("x", b"a" * 100_000)
    over = threading.Event()

    def write() -> None:
        for number in range(200):
            storage.write("x", (b"a" if number % 2 else b"b") * 100_000)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        data = storage.read("x") or b""
        assert len(data) == 100_000
        assert len(set(data)) == 1
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=f"Cannot write {tmp_path}/x: Permission denied"):
        open_storage(str(tmp_path)).write("x", b"")


def test_a_file_instead_of_the_directory_is_reported_clearly(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*store"):
        open_storage(str(tmp_path / "store")).write("x", b"")


@pytest.mark.parametrize("folder", ["", "job"])
def test_a_link_below_the_directory_is_not_followed(tmp_path: Path, folder: str) -> None:
    root, secret = tmp_path / "store", tmp_path / "secret"
    (root / folder).mkdir(parents=True)
    (secret / "deep").mkdir(parents=True)
    (secret / "x").write_bytes(b"red")
    storage = open_storage(str(root), folder)
    storage.write("y", b"1")
    (root / folder / "aside").symlink_to(secret)
    (root / folder / "x").symlink_to(secret / "x")
    calls: list[Callable[[], object]] = [
        lambda: storage.write("aside/z", b""),
        lambda: storage.write("aside/deep/z", b""),
        lambda: storage.read("aside/x"),
        lambda: storage.read("x"),
        lambda: storage.move("y", "aside/y"),
        lambda: storage.move("aside/x", "y"),
        lambda: storage.remove("aside/x"),
        lambda: storage.names("aside"),
        lambda: storage.write("../z", b""),
        lambda: storage.read("../../secret/x"),
    ]
    for call in calls:
        with pytest.raises(StorageError):
            call()
    storage.prune("aside/deep")
    storage.write("x", b"blue")  # in the place of the link
    assert sorted(path.name for path in secret.iterdir()) == ["deep", "x"]
    assert (secret / "x").read_bytes() == b"red"
    storage.remove_all()
    assert (secret / "deep").is_dir()


def test_a_folder_that_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x").touch()
    (tmp_path / "store" / "job").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="link"):
        open_storage(str(tmp_path / "store"), "job").write("x", b"")
    with pytest.raises(StorageError):
        open_storage(str(tmp_path / "store"), "job").remove_all()
    assert (tmp_path / "secret" / "x").exists()


def test_a_pipe_instead_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(StorageError, match="not a regular file"):
        open_storage(str(tmp_path)).read("x")
