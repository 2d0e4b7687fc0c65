"""Prompts and chats with images by vLLM, on a tiny model: the texts of transformers, image tokens and all."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from common.records import FileInput, Json
from tests.support import tiny_media, tiny_multimodal
from workers.inference.core.runner import NullMonitor, Runner
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import LoadOptions

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

TASK = "image-text-to-text"
GREEDY: dict[str, Json] = {"do_sample": False, "max_new_tokens": 8}
BLOBS = [tiny_media.image_bytes(40, 30, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llava whose weights have the names that they have on the Hub, the ones that vLLM knows."""
    directory = tiny_multimodal.llava(tmp_path_factory.mktemp("llava"), head_dim=32)  # the least that vLLM takes
    file = directory / "model.safetensors"
    weights = {
        re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name): one for name, one in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def engine(llava: Path) -> Iterator[Runner]:
    runner = find_runner(TASK, "vllm").load(TASK, llava, "cpu", LoadOptions())
    yield runner
    runner.close()


def test_questions_and_chats_with_images_get_the_texts_of_transformers(engine: Runner, llava: Path):
    plain = find_runner(TASK).load(TASK, llava, "cpu", LoadOptions())
    chat = {
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a dog?"}]}],
    }
    inputs = [
        FileInput({"text": "what is this?"}, BLOBS[0]),
        FileInput(chat, BLOBS[1]),
        FileInput({"text": "a big dog"}, BLOBS[2]),
        {"text": "no image at all"},
        FileInput({"text": "not an image"}, b"nothing"),
    ]
    found, expected = (runner.run(inputs, GREEDY, NullMonitor()) for runner in (engine, plain))
    assert [outcome.output for outcome in found] == [outcome.output for outcome in expected]
    assert [outcome.failure is None for outcome in found] == [True, True, True, True, False]
    assert found[4].failure == expected[4].failure


def test_what_vllm_lacks_is_refused(engine: Runner):
    assert engine.refusal({**GREEDY, "num_beams": 2}) == "num_beams=2"
    assert engine.refusal(GREEDY) is None
