"""Continuous batching for text generation: when a text ends, the next one takes its place at once.

A static batch computes until its longest text ends. This uses transformers' own loop over a paged cache
(`transformers.generation.continuous_batching`) for the duration of a chunk; its device memory is then free for other
models. Works on token ids and generation configurations, not on records.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import ContinuousBatchingConfig

from workers.inference.core.device_errors import is_device_lost
from workers.inference.core.fallbacks import count_fallback
from workers.inference.core.runner import NullMonitor, RunMonitor
from workers.inference.loading.dtypes import is_reduced_precision
from workers.inference.loading.outputs_match import outputs_match

logger = logging.getLogger(__name__)

#: Seconds between two checks for progress while no text ends.
_POLL = 0.1
#: Prompts of a trial: two lengths, of tokens that every vocabulary has; and how many tokens it generates.
_TRIAL_PROMPTS, _TRIAL_TOKENS = ([5, 6, 7], [8, 9, 5, 6, 7]), 4
#: Parameters that continuous batching does not support, and their values without effect.
_NOOP_VALUES = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "min_new_tokens": (None, 0),
    "stop_strings": (None, []),
    "max_time": (None,),
    "prompt_lookup_num_tokens": (None,),
}


class ContinuousBatcher:
    """Generates text with one model in continuous batches.

    Args:
        model: with a head for generation.
        options: for transformers' `ContinuousBatchingConfig`, which adapts the others to the device.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        self._model = model
        # The defaults look for kernels on the Hub, and leave no memory to other models.
        self._options = {"auto_switch_to_flash": False, "max_memory_percent": 0.8, **options}

    def supports(self, config: Any) -> bool:
        """Whether this configuration gives the same texts as `generate`."""
        return supports_config(self._model, config)

    def generate(self, prompts: Sequence[list[int]], config: Any, monitor: RunMonitor) -> list[list[int]]:
        """Return the new tokens of each prompt, including the one that ends the text.

        Args:
            prompts: token ids, without padding.
            config: a generation configuration that it `supports`.
            monitor: called as steps are made; a loop without progress does not call it.

        Raises:
            RuntimeError: the loop ended before its texts did, for example out of memory.
        """
        found: dict[int, list[int]] = {}
        with self._running(config) as loop:
            for number, prompt in enumerate(prompts):
                loop.add_request(prompt, request_id=str(number))
            steps = 0
            while len(found) < len(prompts):
                result = loop.get_result(timeout=_POLL)
                if (current := getattr(loop, "current_batch", 0)) != steps:
                    monitor.tick()
                    steps = current
                if result is None:
                    if not loop.is_running():
                        raise RuntimeError("continuous batching ended before its texts did")
                    continue
                if result.error:
                    raise RuntimeError(result.error)
                found[int(result.request_id)] = result.generated_tokens
        return [found[number] for number in range(len(prompts))]

    @contextmanager
    def _running(self, config: Any) -> Iterator[Any]:
        with torch.inference_mode(False), torch.no_grad():
            # It modifies the configuration that it is given.
            loop = self._model.init_continuous_batching(
                copy.deepcopy(config), ContinuousBatchingConfig(**self._options)
            )
            loop.start()
        try:
            yield loop
        finally:
            loop.stop(block=True, hard_stop=True)


class Batcher(Protocol):
    """Generates text in batches that it makes itself."""

    def supports(self, config: Any) -> bool:
        """Whether this configuration gives the same texts as `generate`."""

    def generate(self, prompts: Sequence[list[int]], config: Any, monitor: RunMonitor) -> list[list[int]]:
        """Return the new tokens of each prompt, including the one that ends the text."""


def supports_config(model: Any, config: Any) -> bool:
    """Whether continuous batching with this generation configuration gives the same texts as `generate`."""
    if config.max_new_tokens is None:
        return False
    if any(getattr(config, name, noop[0]) not in noop for name, noop in _NOOP_VALUES.items()):
        return False
    # It skips unsupported processors, with no more than a line in the log.
    processors = model._get_logits_processor(config)
    return all(getattr(processor, "supports_continuous_batching", False) for processor in processors)


def try_batcher(make: Callable[[Any], Batcher], model: Any) -> Batcher | None:
    """Return a batcher for `model`; None where a trial fails, or differs from `generate`.

    Args:
        make: returns the batcher of a model.
        model: with a head for generation.
    """
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=False, max_new_tokens=_TRIAL_TOKENS, max_length=None, num_beams=1, num_return_sequences=1)
    try:
        batcher = make(model)
        if batcher.supports(config):
            found = batcher.generate(_TRIAL_PROMPTS, config, NullMonitor())
            if all(_agrees(model, config, prompt, new) for prompt, new in zip(_TRIAL_PROMPTS, found, strict=True)):
                return batcher
    except Exception as error:
        if is_device_lost(error):
            raise
        count_fallback("continuous_batching", error)  # any architecture may be loaded; static batches work with all
    logger.info("%s uses static batches: continuous batching fails or its texts differ", type(model).__name__)
    return None


def _agrees(model: Any, config: Any, prompt: list[int], found: list[int]) -> bool:
    """Whether these new tokens are those of `generate`, up to a token that is as likely as its own but for rounding."""
    ids = torch.tensor([prompt], device=model.device)
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = expected.sequences[0, len(prompt) :].tolist()
    for scores, token, other in zip(expected.scores, tokens, found, strict=False):
        if token != other:
            loose = is_reduced_precision(model)
            return outputs_match(scores[0, other], scores[0, token].float().cpu(), loose=loose)
    return len(found) == len(tokens)
