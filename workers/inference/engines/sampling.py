"""Generation configurations of transformers in the words of vLLM, and what vLLM has no word for."""

from collections.abc import Mapping
from typing import Any

#: Parameters of a generation configuration that vLLM lacks, and their values without effect.
_LACKING: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "max_time": (None,),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
}
#: The same, of sampling.
_LACKING_SAMPLERS: dict[str, tuple[Any, ...]] = {
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0, 1.0),
    "eta_cutoff": (None, 0.0, 1.0),
    "top_h": (None,),
}
#: Too little for a second token.
_LEAST_TOP_P = 1e-6


def lacking_parameter(values: Mapping[str, Any]) -> str | None:
    """Return the first parameter that vLLM lacks, None if there is none.

    Args:
        values: of a generation configuration, or of a job, by name.
    """
    lacking = {**_LACKING, **(_LACKING_SAMPLERS if values.get("do_sample") else {})}
    for name, noop in lacking.items():
        if (value := values.get(name)) not in noop:
            return f"{name}={value!r:.80}"
    return None


def sampling_arguments(config: Any, prompt_tokens: int, vocabulary: int) -> dict[str, Any]:
    """Return the arguments of vLLM's `SamplingParams` that mean a generation configuration.

    Args:
        config: one in which it lacks nothing.
        prompt_tokens: of the prompt, which some parameters count.
        vocabulary: how many tokens the model scores.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    longest = config.max_length - prompt_tokens if config.max_new_tokens is None else config.max_new_tokens
    shortest = max(config.min_new_tokens or 0, (config.min_length or 0) - prompt_tokens)
    arguments = {
        "n": config.num_return_sequences or 1,
        "max_tokens": longest,
        "min_tokens": min(shortest, longest),  # vLLM refuses more; for `generate` the maximum counts
        "repetition_penalty": config.repetition_penalty or 1.0,
        "stop": config.stop_strings or None,
        # Here the ends of the configuration alone count, as for `generate`; vLLM would add the tokenizer's.
        # A token that the model does not have ends nothing; a minimum of tokens looks it up, and vLLM dies.
        "stop_token_ids": [end for end in ends if end is not None and end < vocabulary],
        "ignore_eos": True,
    }
    return arguments | (_sampler(config) if config.do_sample else {"temperature": 0.0})


def _sampler(config: Any) -> dict[str, Any]:
    return {
        "temperature": 1.0 if config.temperature is None else config.temperature,
        "top_k": config.top_k or 0,
        # For `generate`, 0 leaves the most likely token; vLLM refuses it.
        "top_p": 1.0 if config.top_p is None else max(config.top_p, _LEAST_TOP_P),
        "min_p": config.min_p or 0.0,
    }
