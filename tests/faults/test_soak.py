"""A short soak: what `make test-soak` does for a quarter of an hour, with the settings that workers have by default."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.soak import Soak
from tests.support.processes import PLUGINS


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_every_record_is_answered_once_while_workers_are_killed_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    soak = Soak(tmp_path, seed=2)
    try:
        figures = soak.run(seconds=120, kill_every=20)
    finally:
        soak.stop()
    record_property("figures", str(figures))
    assert (figures.losses, figures.duplicates) == (0, 0)
    assert figures.kills >= 4 and figures.jobs > figures.kills
