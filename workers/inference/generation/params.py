"""What a job's parameters of `generate`, its task and its model come to together."""

import copy
from collections.abc import Mapping
from typing import Any

from common.errors import ModelError
from common.records import Json


def build_generation_config(model: Any, *layers: Mapping[str, Json]) -> Any:
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
