"""Fixtures of the tests of the device process."""

from collections.abc import Iterator

import pytest

from tests.support.device_process import RunningDevice, running_device


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDevice]:
    """A device process with the settings of tests."""
    with running_device(monkeypatch) as started:
        yield started
