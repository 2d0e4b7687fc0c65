"""Tests of vLLM as an engine, in an environment of its own: `make test-vllm`. It loads for half a minute each time."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.chat_model import chat_model

CACHE = Path(__file__).parents[2] / ".cache" / "chat-model"


@pytest.fixture(autouse=True, scope="session")
def small_engine() -> Iterator[None]:
    """A cache of 1 GiB is enough for tests."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: make test-vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.delenv("OMP_NUM_THREADS")  # vLLM counts the cores itself
        yield


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in float32, made once."""
    return chat_model(CACHE)
