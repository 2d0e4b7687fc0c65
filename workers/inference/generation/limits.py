"""How many tokens a job may have generated for one record: the worker's limit, held against parameters and model.

What a job asks for is looked at before any model is loaded, so that a job which asks for too much fails at once, and
again together with what its model adds. What a model's own configuration asks for is bounded.
"""

from collections.abc import Mapping
from typing import Any

from common.errors import ModelError
from common.records import Json

#: Tasks for which `max_length` is that of the new text; elsewhere it says where the input is cut.
_TASKS = frozenset({"text-generation", "text2text-generation", "summarization", "translation"})
_LENGTHS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length")
_COPIES = ("num_beams", "num_return_sequences")
#: What counts where a job names no length: the runners' own default.
_DEFAULT_LENGTH = 256


def check_token_limit(task: str, params: Mapping[str, Json], most: int) -> None:
    """Check what a job asks for: its longest length, times the larger of its numbers of beams and of sequences.

    Values of the wrong type are left to the runner, which knows its parameters.

    Raises:
        ModelError: `too_many_tokens`.
    """
    lengths = _LENGTHS if task.partition("_")[0] in _TASKS else _LENGTHS[:2]
    length = max(_number(params, name) for name in lengths)
    copies = max(_number(params, name) for name in _COPIES)
    if not length and not copies:
        return
    asked = (length or _DEFAULT_LENGTH) * max(copies, 1)
    if asked > most:
        named = ", ".join(f"{name}={params[name]}" for name in (*lengths, *_COPIES) if name in params)
        raise ModelError(
            "too_many_tokens",
            f"{named}: that is up to {asked:,} tokens for one record, and this worker generates at most {most:,} "
            "(HUGQUEUE_MAX_NEW_TOKENS), those of all beams or sequences together. Ask for fewer: "
            "-p max_new_tokens=N.",
        )


def apply_token_limit(task: str, params: Mapping[str, Json], config: Any, most: int) -> None:
    """Check a job's parameters together with the configuration that its model brings; bound that where it asks alone.

    Args:
        task: its name.
        params: the job's.
        config: a `GenerationConfig`: the model's own, or one that has the job's parameters in it already.
        most: tokens for one record.

    Raises:
        ModelError: `too_many_tokens`.
    """
    if not any(name in params for name in (*_LENGTHS, *_COPIES)):
        cap_generation_config(config, most)
        return
    names = _COPIES if any(name in params for name in _LENGTHS) else (*_LENGTHS, *_COPIES)
    own = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    check_token_limit(task, {**own, **params}, most)


def cap_generation_config(config: Any, most: int) -> None:
    """Bound what a `GenerationConfig` asks for: the number of beams and sequences, and with it the length."""
    for name in _COPIES:
        if (getattr(config, name, None) or 1) > most:
            setattr(config, name, most)
    copies = max(getattr(config, name, None) or 1 for name in _COPIES)
    longest = max(getattr(config, name, None) or 0 for name in _LENGTHS) or _DEFAULT_LENGTH
    if longest * copies > most:
        config.max_new_tokens = most // copies  # wins over max_length, which counts the prompt where there is one
        for name in ("min_length", "min_new_tokens"):
            if (getattr(config, name, None) or 0) > config.max_new_tokens:
                setattr(config, name, config.max_new_tokens)


def cap_model_config(model: Any, most: int) -> None:
    """Bound what a model's own configuration says about how much it generates, for each of its tasks too."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    cap_generation_config(config, most)
    of_tasks = getattr(model.config, "task_specific_params", None)
    for params in of_tasks.values() if isinstance(of_tasks, dict) else ():
        params.update({name: most for name in _COPIES if _number(params, name) > most})
        copies = max(_number(params, name) or getattr(config, name, None) or 1 for name in _COPIES)
        params.update({name: most // copies for name in _LENGTHS if _number(params, name) > most // copies})


def _number(params: Mapping[str, Json], name: str) -> int:
    value = params.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
