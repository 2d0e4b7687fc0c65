"""A GPU whose context is ruined costs the record that did it: a fresh device process runs the others."""

import pytest
import torch

from tests.support.device_process import codes, outcomes, running_device
from tests.support.processes import wait_until
from workers.inference.core.device_errors import is_device_lost


def test_a_device_side_assert_fails_its_record_alone(monkeypatch: pytest.MonkeyPatch, device: str):
    with running_device(monkeypatch, device=device, batch_timeout=60.0) as running:
        before = running.pid()
        result = running.run("test-crash", [*"abcdef", "gpu-lost", "g"])
        assert codes(result) == {6: "worker_died"}
        assert "GPU" in (outcomes(result)[6].failure or pytest.fail()).message
        assert [outcome.output for outcome in outcomes(result).values()] == [*"ABCDEF", None, "G"]
        assert wait_until(lambda: running.process.pid, 60) != before
        assert not codes(running.run("test-crash", ["a", "b"]))


def test_an_error_of_one_call_leaves_the_device_whole(gpu: str):
    torch.zeros(1, device=gpu)
    assert not is_device_lost(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"))
