"""Tests of vLLM as an engine, in an environment of its own: `make test-vllm`. It loads for half a minute each time."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.chat_model import chat_model

CACHE = Path(__file__).parents[2] / ".cache" / "chat-model"


@pytest.fixture(autouse=True, scope="session")
def small_engine() -> Iterator[None]:
    """A cache of 1 GiB is enough for tests. They keep to one thread: on a busy machine, two wait for each other."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: make test-vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32, with a context of 1,024 tokens: a text that fills it takes seconds."""
    directory = tmp_path_factory.mktemp("smollm2")
    for file in chat_model(CACHE).iterdir():
        shutil.copy(file, directory)
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    return directory
