"""Generation configurations in vLLM's words, without vLLM: what it follows, and what it leaves to transformers."""

import pytest
from transformers import GenerationConfig

from workers.inference.engines.sampling import lacking_parameter, sampling_arguments

#: Those that select caches or devices, or say what is returned; `generate` ignores the rest without beams or encoder.
WITHOUT_EFFECT = {
    "length_penalty": 2.0,
    "early_stopping": True,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "decoder_start_token_id": 3,
}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids=[[5]]"),
        ({"suppress_tokens": [4]}, "suppress_tokens=[4]"),
        ({"forced_eos_token_id": 2}, "forced_eos_token_id=2"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p=0.5"),
        ({"do_sample": True, "epsilon_cutoff": 0.1}, "epsilon_cutoff=0.1"),
        ({"typical_p": 0.5}, None),  # nothing is sampled
        *(({name: value}, None) for name, value in WITHOUT_EFFECT.items()),
    ],
)
def test_what_vllm_lacks_is_named(more, reason):
    assert lacking_parameter(vars(GenerationConfig(max_new_tokens=5, **more))) == reason
    assert lacking_parameter(more) == reason


def test_lengths_that_include_the_prompt_are_counted_without_it():
    config = GenerationConfig(max_length=30, min_length=12, eos_token_id=[2, 3])
    found = sampling_arguments(config, prompt_tokens=10, vocabulary=100)
    assert (found["max_tokens"], found["min_tokens"]) == (20, 2)
    assert (found["stop_token_ids"], found["ignore_eos"]) == ([2, 3], True)
    assert sampling_arguments(config, prompt_tokens=20, vocabulary=100)["min_tokens"] == 0


def test_what_generate_takes_and_vllm_refuses_is_brought_within_its_range():
    config = GenerationConfig(max_new_tokens=5, min_new_tokens=9, do_sample=True, top_p=0)
    found = sampling_arguments(config, 1, 100)
    assert (found["max_tokens"], found["min_tokens"]) == (5, 5)
    assert 0 < found["top_p"] < 1e-3


def test_sampling_parameters_count_only_when_sampling():
    sampler = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1}
    greedy = sampling_arguments(GenerationConfig(max_new_tokens=5, num_return_sequences=None, **sampler), 1, 100)
    assert greedy["temperature"] == 0.0
    assert greedy.keys().isdisjoint({"top_k", "top_p", "min_p"})
    sampled = GenerationConfig(max_new_tokens=5, do_sample=True, num_return_sequences=3, stop_strings=["."], **sampler)
    found = sampling_arguments(sampled, 1, 100)
    assert found | sampler == found
    assert (found["n"], found["stop"]) == (3, ["."])
