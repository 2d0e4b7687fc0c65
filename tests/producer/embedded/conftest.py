"""Fixtures of the tests of the embedded Redis and its worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.embedded_processes import Home
from tests.support.processes import environment


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A state directory whose processes are killed after the test."""
    found = Home(environment(tmp_path, HUGQUEUE_DEVICE="cpu"))
    yield found
    found.end()
