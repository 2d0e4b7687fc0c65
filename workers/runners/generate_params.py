"""The parameters of `generate` that a job may set, and what its model and task settle where the job says nothing.

Left out are those that choose caches, compilers or assistant models, that change what comes back, or that make a
record's text depend on the others of its batch (`max_time`).
"""

import copy
from collections.abc import Mapping
from typing import Any

from common.errors import ModelError
from common.values import Json
from workers.runners.kinds import COUNT, COUNT_OR_ZERO, FLAG, LIST, NUMBER, POSITIVE, TEXTS, WHOLES, Kind, either

_IDS = Kind(
    "a token id, or a list of them",
    lambda value: COUNT_OR_ZERO.accepts(value) or (WHOLES.accepts(value) and bool(value)),
)

GENERATE_PARAMS: Mapping[str, Kind] = {
    "bad_words_ids": LIST,
    "begin_suppress_tokens": WHOLES,
    "decoder_start_token_id": COUNT_OR_ZERO,
    "do_sample": FLAG,
    "early_stopping": either(FLAG, "never"),
    "encoder_no_repeat_ngram_size": COUNT_OR_ZERO,
    "encoder_repetition_penalty": POSITIVE,
    "eos_token_id": _IDS,
    "epsilon_cutoff": NUMBER,
    "eta_cutoff": NUMBER,
    "exponential_decay_length_penalty": LIST,
    "forced_bos_token_id": COUNT_OR_ZERO,
    "forced_eos_token_id": _IDS,
    "length_penalty": NUMBER,
    "max_length": COUNT,
    "max_new_tokens": COUNT,
    "min_length": COUNT_OR_ZERO,
    "min_new_tokens": COUNT_OR_ZERO,
    "min_p": NUMBER,
    "no_repeat_ngram_size": COUNT_OR_ZERO,
    "num_beams": COUNT,
    "num_return_sequences": COUNT,
    "remove_invalid_values": FLAG,
    "renormalize_logits": FLAG,
    "repetition_penalty": POSITIVE,
    "stop_strings": TEXTS,
    "suppress_tokens": WHOLES,
    "temperature": POSITIVE,
    "top_h": NUMBER,
    "top_k": COUNT_OR_ZERO,
    "top_p": NUMBER,
    "typical_p": NUMBER,
}


def settle(model: Any, *layers: Mapping[str, Json]) -> Any:
    """Return the model's generation configuration with `layers` laid over it, the later over the earlier.

    The first layer holds defaults: what the model sets itself stays. A layer that sets one of `max_length` and
    `max_new_tokens` takes the other away. Length is always told as `max_new_tokens` (of an encoder-decoder, whose
    output begins with one token), because `generate` lets that win over `max_length`, wherever either comes from.

    Raises:
        ModelError: `bad_param`, settings that do not go together.
    """
    config = copy.deepcopy(model.generation_config)
    defaults, *chosen = layers
    values = {name: value for name, value in defaults.items() if getattr(config, name, None) is None}
    if config.max_length is not None:
        values.pop("max_new_tokens", None)
    for layer in chosen:
        values.update({name: value for name, value in layer.items() if hasattr(config, name)})
        if "max_length" in layer and "max_new_tokens" not in layer:
            values["max_new_tokens"] = max(1, int(layer["max_length"]) - 1)
        values.pop("max_length", None)
    try:
        config.update(**values)
        config.validate()
    except (ValueError, TypeError) as error:
        raise ModelError("bad_param", f"These generation parameters do not go together: {error}"[:1000]) from error
    return config
