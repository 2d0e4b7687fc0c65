"""Log-probabilities of generated tokens are those that transformers gives, in any batch, for texts and for images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from common.errors import ModelError
from common.records import FileInput, Json
from tests.support import tiny_media, tiny_models, tiny_multimodal
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import RecordingMonitor
from workers.inference.core.runner import Runner
from workers.inference.generation.logprobs import token_texts
from workers.inference.tasks.images import decode_image

PROMPTS = ["the old cat", "i go to school and", "a", "seoul is a big city", "the old dog"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.causal_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def runner(gpt2: Path) -> Runner:
    return runner_of("text-generation", gpt2)


def texts(runner: Runner, records: list[Json], **params: Json) -> list[Json]:
    outcomes = runner.run(records, {"max_new_tokens": 6, "do_sample": False, **params}, RecordingMonitor())
    assert [outcome.failure for outcome in outcomes] == [None] * len(records)
    return [outcome.output for outcome in outcomes]


def expected(model: Any, tokenizer: Any, inputs: Any, top: int, **params: Json) -> list[list[Json]]:
    """Return the log_softmax of the scores that `generate` returns, of each text of a prompt."""
    asked = {"max_new_tokens": 6, "do_sample": False, **params}
    found = model.generate(**inputs, **asked, return_dict_in_generate=True, output_logits=True)
    scores = torch.stack(found.logits, dim=1).log_softmax(dim=-1)
    rows = []
    for row, ids in enumerate(found.sequences[:, inputs["input_ids"].shape[1] :].tolist()):
        end = ids.index(model.generation_config.eos_token_id) if model.generation_config.eos_token_id in ids else None
        values, tokens = scores[row].topk(top)
        rows.append(
            [
                {
                    "token": tokenizer.decode([token]),
                    "logprob": scores[row, step, token].item(),
                    "top_logprobs": [
                        {"token": tokenizer.decode([other]), "logprob": value.item()}
                        for other, value in zip(tokens[step], values[step], strict=True)
                    ],
                }
                for step, token in enumerate(ids[:end])
            ]
        )
    return rows


def assert_same(found: list[Json], wanted: list[Json]) -> None:
    assert [one["token"] for one in found] == [one["token"] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)
        for top, wanted_top in zip(one["top_logprobs"], other["top_logprobs"], strict=True):
            assert top["logprob"] == pytest.approx(wanted_top["logprob"], abs=1e-4)


@pytest.mark.parametrize("params", [{}, {"repetition_penalty": 1.5, "seed": 4}, {"choices": ["a b", "the"]}])
def test_they_are_what_the_model_itself_gave_each_token(gpt2: Path, runner: Runner, params: dict[str, Json]):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    found = texts(runner, PROMPTS, **params, logprobs=3, return_full_text=False)
    for prompt, [text] in zip(PROMPTS, found, strict=True):
        if "choices" in params:
            # What the constraint forbids keeps its probability: the text is not the likeliest one.
            assert text["generated_text"] in params["choices"]
            assert text["logprobs"][0]["logprob"] <= text["logprobs"][0]["top_logprobs"][0]["logprob"]
            continue
        own = {name: value for name, value in params.items() if name != "seed"}
        [wanted] = expected(model, tokenizer, tokenizer(prompt, return_tensors="pt"), 3, **own)
        assert_same(text["logprobs"], wanted)
        assert joined(text) in (text["generated_text"], None)


def joined(text: Json) -> str | None:
    """Return the tokens as one text; None where some are a part of a character."""
    found = "".join(one["token"] for one in text["logprobs"])
    return None if "\ufffd" in found else found


def test_a_token_keeps_the_space_before_it():
    pieces = Tokenizer(models.WordLevel({"\u2581the": 0, "\u2581cat": 1, "s": 2, "<unk>": 3}, unk_token="<unk>"))
    pieces.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    assert tokenizer.decode([0]) == "the"
    assert "".join(map(token_texts(tokenizer), [0, 1, 2])) == " the cats"


def test_each_of_several_sampled_texts_has_its_own(gpt2: Path, runner: Runner):
    [found] = texts(
        runner, PROMPTS[:1], do_sample=True, seed=1, num_return_sequences=3, logprobs=0, return_full_text=False
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    for text in found:
        ids = tokenizer(PROMPTS[0] + text["generated_text"], return_tensors="pt")
        assert all(one["top_logprobs"] == [] for one in text["logprobs"])
        assert joined(text) in (text["generated_text"], None)
        assert all(one["logprob"] < 0 for one in text["logprobs"])
        with torch.inference_mode():
            scores = model(**ids).logits[0].log_softmax(dim=-1)
        assert max(one["logprob"] for one in text["logprobs"]) <= scores.max().item() + 1e-4
    assert len({text["generated_text"] for text in found}) > 1


def test_a_text_about_an_image_has_them_too(tmp_path: Path):
    llava = tiny_multimodal.llava(tmp_path)
    processor, model = AutoProcessor.from_pretrained(llava), AutoModelForImageTextToText.from_pretrained(llava)
    blobs = [tiny_media.image_bytes(40, 30, seed) for seed in range(2)]
    records: list[Json] = [FileInput({"image": "x.png", "text": "a dog"}, blob) for blob in blobs]
    found = texts(runner_of("image-text-to-text", llava), records, logprobs=2, usage=True)
    for blob, [text] in zip(blobs, found, strict=True):
        content = [{"type": "image", "image": decode_image(blob)}, {"type": "text", "text": "a dog"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        [wanted] = expected(model, processor.tokenizer, inputs, 2)
        assert_same(text["logprobs"], wanted)
        assert text["prompt_tokens"] == inputs["input_ids"].shape[1]
        assert text["completion_tokens"] >= len(wanted)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"logprobs": 21}, "from 0 to 20"),
        ({"logprobs": True}, "from 0 to 20"),
        ({"logprobs": 1, "num_beams": 2}, "num_beams"),
    ],
)
def test_what_they_cannot_be_told_of_is_refused(runner: Runner, params: dict[str, Json], words: str):
    with pytest.raises(ModelError, match=words) as caught:
        runner.run(PROMPTS, params, RecordingMonitor())
    assert caught.value.code == "bad_param"
