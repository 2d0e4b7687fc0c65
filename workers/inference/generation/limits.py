"""Limits on generated tokens: the worker's maximum per record, applied to jobs and to models' own configurations.

A job that asks for more is rejected before its model is loaded, and again together with what its model's configuration
adds. A model's own configuration is capped.
"""

from collections.abc import Mapping
from typing import Any

from common.errors import ModelError
from common.records import Json

#: Tasks whose `max_length` is that of the generated text; for others it says where the input is truncated.
_TASKS = frozenset(
    {"text-generation", "text2text-generation", "summarization", "translation", "image-text-to-text", "any-to-any"}
)
_LENGTHS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length")
_COPIES = ("num_beams", "num_return_sequences")
#: The runners' default where neither job nor model sets a length.
_DEFAULT_LENGTH = 256


def check_token_limit(task: str, params: Mapping[str, Json], limit: int) -> None:
    """Check a job's parameters: the largest length, times the larger of its numbers of beams and of sequences.

    Values of the wrong type are left to the runner, which knows its parameters.

    Raises:
        ModelError: `too_many_tokens`.
    """
    lengths = _LENGTHS if task.partition("_")[0] in _TASKS else _LENGTHS[:2]
    length, copies = _largest(params, lengths), _largest(params, _COPIES)
    total = (length or _DEFAULT_LENGTH) * max(copies, 1)
    if (length or copies) and total > limit:
        named = ", ".join(f"{name}={params[name]}" for name in (*lengths, *_COPIES) if name in params)
        raise ModelError(
            "too_many_tokens",
            f"{named}: that is up to {total:,} tokens for one record, and this worker generates at most {limit:,} "
            "(HUGQUEUE_MAX_NEW_TOKENS), those of all beams or sequences together. Ask for fewer: "
            "-p max_new_tokens=N.",
        )


def apply_token_limit(task: str, params: Mapping[str, Json], config: Any, limit: int) -> None:
    """Check a job's parameters together with its model's configuration; cap the configuration where the job sets none.

    Args:
        task: its name.
        params: the job's.
        config: a `GenerationConfig`: the model's own, or one that already includes the job's parameters.
        limit: tokens per record.

    Raises:
        ModelError: `too_many_tokens`.
    """
    if params.keys().isdisjoint((*_LENGTHS, *_COPIES)):
        cap_generation_config(config, limit)
        return
    names = (*_LENGTHS, *_COPIES) if params.keys().isdisjoint(_LENGTHS) else _COPIES
    own = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    check_token_limit(task, {**own, **params}, limit)


def cap_generation_config(config: Any, limit: int) -> None:
    """Cap the numbers of beams and sequences of a `GenerationConfig`, and with them its length."""
    values = vars(config)
    changes = {name: limit for name in _COPIES if _number(values, name) > limit}
    copies = min(max(1, _largest(values, _COPIES)), limit)
    if (_largest(values, _LENGTHS) or _DEFAULT_LENGTH) * copies > limit:
        new_tokens = limit // copies
        changes["max_new_tokens"] = new_tokens  # takes precedence over max_length, which may count the prompt
        minima = ("min_length", "min_new_tokens")
        changes |= {name: new_tokens for name in minima if _number(values, name) > new_tokens}
    for name, value in changes.items():
        setattr(config, name, value)


def cap_model_config(model: Any, limit: int) -> None:
    """Cap a model's own generation configuration, and that of each of its tasks."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    cap_generation_config(config, limit)
    task_params = getattr(model.config, "task_specific_params", None)
    for params in task_params.values() if isinstance(task_params, dict) else ():
        params.update({name: limit for name in _COPIES if _number(params, name) > limit})
        copies = max(_number(params, name) or getattr(config, name, None) or 1 for name in _COPIES)
        params.update({name: limit // copies for name in _LENGTHS if _number(params, name) > limit // copies})


def _largest(params: Mapping[str, Json], names: tuple[str, ...]) -> int:
    return max(_number(params, name) for name in names)


def _number(params: Mapping[str, Json], name: str) -> int:
    value = params.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
