"""A GPU whose context is ruined costs the record that did it: a fresh device process runs the others."""

import pytest

from tests.support.device_process import codes, outcomes, running_device
from tests.support.processes import wait_until


def test_a_device_side_assert_fails_its_record_alone(monkeypatch: pytest.MonkeyPatch, device: str):
    with running_device(monkeypatch, device=device, batch_timeout=60.0) as running:
        before = running.pid()
        result = running.run("test-crash", [*"abcdef", "gpu-lost", "g"])
        assert codes(result) == {6: "worker_died"}
        assert "GPU" in (outcomes(result)[6].failure or pytest.fail()).message
        assert [outcome.output for outcome in outcomes(result).values()] == [*"ABCDEF", None, "G"]
        assert wait_until(lambda: running.process.pid, 60) != before
        assert not codes(running.run("test-crash", ["a", "b"]))
