"""The generation configuration that `generate` will use: of the model, the pipeline and the job together."""

from collections.abc import Mapping
from typing import Any

from common.errors import ModelError
from workers.inference.generation.seeded_sampling import logits_warpers


def resolve_generation_config(task: str, pipe: Any, forward: Mapping[str, Any]) -> Any:
    """Return the `GenerationConfig` of a pipeline's model under these arguments of `generate`.

    Raises:
        ModelError: `bad_param`, `generate` would refuse them.
    """
    try:
        kwargs = _generate_arguments(pipe, forward)
        config, _ = pipe.model._prepare_generation_config(kwargs.pop("generation_config", None), **kwargs)
        config.validate()
        if config.do_sample:
            logits_warpers(config)
    except (ValueError, TypeError) as error:
        raise ModelError("bad_param", f"{task} does not take these parameters: {error}") from error
    return config


def _generate_arguments(pipe: Any, forward: Mapping[str, Any]) -> dict[str, Any]:
    if hasattr(pipe, "_prepare_generate_kwargs"):
        return dict(pipe._prepare_generate_kwargs(dict(forward)))
    return {"generation_config": pipe.generation_config, **forward}  # transformers before 5.20


def with_default_length(task: str, pipe: Any, forward: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """Return arguments of `generate` with a default length that leaves half of the model's positions to the prompt.

    Args:
        task: for messages.
        pipe: the pipeline.
        forward: the arguments.
        limit: positions of the model, None for no limit.

    Raises:
        ModelError: `bad_param`, the job asks for more tokens than the model has positions.
    """
    wanted = resolve_generation_config(task, pipe, forward).max_new_tokens
    if wanted is None or limit is None or wanted < limit:
        return dict(forward)
    if "max_new_tokens" in forward:
        raise ModelError("bad_param", f"max_new_tokens must be below {limit}, the model's context length.")
    return {**forward, "max_new_tokens": limit // 2}
