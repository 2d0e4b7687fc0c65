"""Sockets get a short path, wherever the temporary directory is."""

import socket
import tempfile
from pathlib import Path

import pytest

from common.sockets import socket_directory


def test_a_socket_can_be_made_whatever_the_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    for base in (Path(tempfile.gettempdir()), deep):
        monkeypatch.setattr(tempfile, "tempdir", str(base))
        with socket_directory("hugqueue-test-") as directory, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "socket"))
            assert directory.is_relative_to(base) == (base != deep)
            assert directory.stat().st_mode & 0o777 == 0o700
        assert not directory.exists()
