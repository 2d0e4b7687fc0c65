"""Fixtures of the tests on a GPU: skipped without CUDA, unless GPU_TEST_DEVICE names another device (`cpu`)."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def device() -> str:
    """The device that is tested."""
    chosen = os.environ.get("GPU_TEST_DEVICE")
    if chosen:
        return chosen
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; GPU_TEST_DEVICE=cpu runs what a CPU can")
    return "cuda:0"


@pytest.fixture(scope="session")
def gpu(device: str) -> str:
    """The device, for tests that mean nothing on a CPU."""
    if not device.startswith("cuda"):
        pytest.skip("needs a GPU")
    return device
