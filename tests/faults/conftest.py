"""What the faults share: a job that can be looked at."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fault_jobs import Batch
from tests.support.processes import RedisServer, Shell


@pytest.fixture
def new_batch(shell: Shell, server: RedisServer, tmp_path: Path) -> Callable[..., Batch]:
    """Make a job; `submit()` submits it."""
    return lambda *args, **params: Batch(shell, server, tmp_path, *args, **params)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests measured (`record_property`)."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name} = {value}")
