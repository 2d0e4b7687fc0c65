"""Prompts and chats with images by vLLM, on a tiny model: the texts of transformers, image tokens and all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.records import FileInput, Json
from tests.support import tiny_media, tiny_multimodal
from workers.inference.core.runner import NullMonitor, Runner
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import LoadOptions

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

TASK = "image-text-to-text"
GREEDY: dict[str, Json] = {"do_sample": False, "max_new_tokens": 8, "usage": True}
BLOBS = [tiny_media.image_bytes(40, 30, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_multimodal.idefics3(tmp_path_factory.mktemp("idefics3"))


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Runner]:
    runner = find_runner(TASK, "vllm").load(TASK, model, "cpu", LoadOptions())
    yield runner
    runner.close()


def photo(text: str, number: int = 0) -> FileInput:
    return FileInput({"image": f"{number}.png", "text": text}, BLOBS[number])


def test_questions_and_chats_with_images_get_the_texts_of_transformers(engine: Runner, model: Path):
    plain = find_runner(TASK).load(TASK, model, "cpu", LoadOptions())
    chat = {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a dog?"}]}]}
    asked = [
        photo("what is this?"),
        FileInput(chat | {"image": "1.png"}, BLOBS[1]),
        photo("a big dog", 2),
        {"messages": [{"role": "user", "content": "no image at all"}]},
        FileInput({"image": "x.png", "text": "not an image"}, b"nothing"),
    ]
    raw = [photo("<image>a cat"), photo("no place for the image")]
    for inputs, params, failed in (
        (asked, GREEDY, [False] * 4 + [True]),
        (asked, GREEDY | {"system": "be brief"}, [False] * 4 + [True]),
        (raw, GREEDY | {"chat": False}, [False, True]),
    ):
        found, expected = (runner.run(inputs, params, NullMonitor()) for runner in (engine, plain))
        assert [outcome.failure is not None for outcome in found] == failed, found
        assert [outcome.output for outcome in found] == [outcome.output for outcome in expected]


def test_what_vllm_lacks_is_refused(engine: Runner):
    assert engine.refusal({**GREEDY, "num_beams": 2}) == "num_beams=2"
    assert engine.refusal({**GREEDY, "min_length": 5}) == "min_length=5"
    assert engine.refusal(GREEDY) is None


def test_a_text_about_an_image_meets_its_constraint(engine: Runner):
    [found] = engine.run([photo("what is this?")], {"choices": ["a cat", "a dog"], "seed": 1}, NullMonitor())
    assert found.output[0]["generated_text"] in ("a cat", "a dog")
