"""Text generation: chats, seeds that know nothing of batches, prompts cut from the front, a way out in the middle."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import Cancelled, ModelError
from tests.support import tiny_models
from tests.support.pipeline_reference import run, runner_of
from tests.support.tiny_models import TEXTS, ForwardCount, RecordingMonitor
from workers.inference.generation.seeded_sampling import SeededSampler, record_seed

LONG = "the old cat likes the small bird " * 60
GREEDY = {"do_sample": False, "max_new_tokens": 10}
SAMPLED = {"do_sample": True, "max_new_tokens": 12, "return_full_text": False}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.causal_gpt2(tmp_path_factory.mktemp("gpt2"))


def texts_of(outcomes):
    return [[row["generated_text"] for row in outcome.output] for outcome in outcomes]


def test_a_model_without_a_chat_template_fails_chats_and_not_prompts(tmp_path):
    model = tiny_models.causal_gpt2(tmp_path, chat=False)
    chat, prompt = run("text-generation", model, [{"messages": [{"role": "user", "content": "a"}]}, "a"], **GREEDY)
    assert chat.failure is not None
    assert chat.failure.code == "no_chat_template"
    assert prompt.failure is None


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        ["hello"],
        [{"role": "user"}],
        [{"content": "hello"}],
        [{"role": 1, "content": "a"}],
        [{"role": "user", "content": 5}],
    ],
)
def test_messages_of_another_shape_fail_alone(gpt2, messages):
    bad, good = run("text-generation", gpt2, [{"messages": messages}, "the cat"], **GREEDY)
    assert bad.failure is not None
    assert bad.failure.code == "wrong_type"
    assert good.failure is None


def test_messages_that_the_template_refuses_fail_alone(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.causal_gpt2(tmp_path))
    tokenizer.chat_template = "{{ raise_exception('only one message, please') }}"
    tokenizer.save_pretrained(tmp_path)
    (outcome,) = run("text-generation", tmp_path, [{"messages": [{"role": "user", "content": "a"}]}], **GREEDY)
    assert outcome.failure is not None
    assert outcome.failure.code == "wrong_type"
    assert "only one message" in outcome.failure.message


def test_a_long_prompt_keeps_its_end_and_leaves_space_for_new_tokens(gpt2):
    params = {**GREEDY, "return_full_text": False}
    (outcome,) = run("text-generation", gpt2, [LONG], **params)
    tokenizer, model = AutoTokenizer.from_pretrained(gpt2), AutoModelForCausalLM.from_pretrained(gpt2)
    end = tokenizer(LONG, return_tensors="pt")["input_ids"][:, -(96 - 10) :]
    expected = model.generate(end, **GREEDY)[0, end.shape[1] :]
    assert outcome.truncated
    assert outcome.output == [{"generated_text": tokenizer.decode(expected, skip_special_tokens=True)}]


def test_a_prompt_longer_than_max_length_fails_and_says_what_to_do(gpt2):
    long, short = run("text-generation", gpt2, [LONG, "a"], do_sample=False, max_length=20)
    assert long.failure is not None
    assert long.failure.code == "too_long"
    assert "max_new_tokens" in long.failure.message
    assert short.failure is None


def test_a_model_smaller_than_the_default_length_still_writes(gpt2):
    (outcome,) = run("text-generation", gpt2, [LONG], do_sample=False)  # the pipeline's default is 256 new tokens
    assert outcome.failure is None
    assert outcome.truncated


@pytest.mark.parametrize(
    "extra", [{}, {"top_k": 5}, {"top_p": 0.9, "temperature": 1.3}, {"min_p": 0.02, "typical_p": 0.9}]
)
def test_a_seeded_text_depends_only_on_seed_and_record(gpt2, extra):
    runner = runner_of("text-generation", gpt2)
    params = {**SAMPLED, **extra, "seed": 7}
    records = [text[:40] for text in TEXTS]
    together = texts_of(runner.run(records, params, RecordingMonitor()))
    backwards = texts_of(runner.run(records[::-1], params, RecordingMonitor()))[::-1]
    alone = [texts_of(runner.run([record], params, RecordingMonitor()))[0] for record in records]
    assert together == backwards == alone


def test_another_seed_or_another_record_gives_another_text(gpt2):
    first = texts_of(run("text-generation", gpt2, ["the cat", "the dog"], **SAMPLED, seed=1))
    second = texts_of(run("text-generation", gpt2, ["the cat", "the dog"], **SAMPLED, seed=2))
    assert len({text for texts in (*first, *second) for text in texts}) == 4


def test_several_seeded_texts_of_one_record_differ_and_come_again(gpt2):
    params = {**SAMPLED, "seed": 3, "num_return_sequences": 3}
    (first,) = texts_of(run("text-generation", gpt2, ["the cat"], **params))
    again = texts_of(run("text-generation", gpt2, ["the dog", "the cat"], **params))[1]
    assert first == again
    assert len(set(first)) == 3


def test_the_seeded_choice_has_the_odds_of_the_scores():
    odds = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = 4000
    choice = SeededSampler([], [record_seed(1, number) for number in range(rows)])
    scores = choice(torch.zeros(rows, 1, dtype=torch.long), odds.log().repeat(rows, 1))
    found = Counter(scores.argmax(dim=-1).tolist())
    assert torch.isneginf(scores).sum() == rows * 3
    for token, odd in enumerate(odds.tolist()):
        assert found[token] / rows == pytest.approx(odd, abs=0.03)  # four standard deviations


def test_top_k_of_one_leaves_the_seed_no_choice(gpt2):
    greedy = texts_of(run("text-generation", gpt2, list(TEXTS[:4]), **{**SAMPLED, "do_sample": False}))
    narrow = texts_of(run("text-generation", gpt2, list(TEXTS[:4]), **SAMPLED, seed=5, top_k=1))
    assert narrow == greedy


def test_cancelling_takes_effect_inside_a_generation(gpt2):
    runner = runner_of("text-generation", gpt2)
    with ForwardCount() as count, pytest.raises(Cancelled):
        runner.run(["the cat"], {"max_new_tokens": 60, "do_sample": False}, RecordingMonitor(cancel_after=6))
    assert count.passes < 10


def test_every_token_is_a_sign_of_life(gpt2):
    monitor = RecordingMonitor()
    runner_of("text-generation", gpt2).run(["the cat"], {"max_new_tokens": 30, "min_new_tokens": 30}, monitor)
    assert monitor.ticks >= 30


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"temprature": 1}, "Did you mean temperature"),
        ({"temperature": 0}, "above 0"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": 500}, "below 96"),
        ({"max_length": 500}, "at most 96"),
        ({"top_p": 3}, "top_p"),
        ({"bad_words_ids": [1]}, "list of lists"),
        ({"num_return_sequences": 2, "do_sample": False}, "num_return_sequences"),
        ({"seed": "7"}, "whole number"),
        ({"seed": 7, "num_beams": 2}, "beams"),
        ({"trust_remote_code": True}, "has no parameter"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_record_runs(gpt2, params, said):
    monitor = RecordingMonitor()
    with pytest.raises(ModelError, match=said) as caught:
        runner_of("text-generation", gpt2).run(["the cat"], params, monitor)
    assert caught.value.code == "bad_param"
    assert monitor.batches == []
