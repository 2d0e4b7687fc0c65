"""Continuous batching for text generation: where a text ends, the next one takes its place at once.

A static batch computes until its longest text ends. Here transformers' own loop over a paged cache does the work
(`transformers.generation.continuous_batching`), for as long as a chunk takes: what it holds of the device's memory is
free again afterwards, for models that are loaded later. Knows token ids and generation configurations, no records.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import ContinuousBatchingConfig

from workers.inference.core.runner import NullMonitor, RunMonitor

logger = logging.getLogger(__name__)

#: Seconds between two looks whether steps were made, while no text ends.
_POLL = 0.1
#: What the trial generates from: prompts of two lengths, of tokens that every vocabulary has.
_TRIAL_PROMPTS, _TRIAL_TOKENS = ([5, 6, 7], [8, 9, 5, 6, 7]), 4
#: Settings that ask for more than one row, or for an end that only `generate` knows, and their values that do not.
_NOOP_VALUES = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "min_new_tokens": (None, 0),
    "stop_strings": (None, []),
    "max_time": (None,),
    "prompt_lookup_num_tokens": (None,),
}


class ContinuousBatcher:
    """Generates with one model.

    Args:
        model: with a head for generation.
        options: for transformers' `ContinuousBatchingConfig`; left out, what suits the device.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        self._model = model
        # By itself it would look for kernels on the hub; and a part of the memory is for what else is loaded.
        self._options = {"auto_switch_to_flash": False, "max_memory_percent": 0.8, **options}

    def supports(self, config: Any) -> bool:
        """Whether texts under this generation configuration come out as `generate` would have them."""
        if config.max_new_tokens is None:
            return False
        if any(getattr(config, name, idle[0]) not in idle for name, idle in _NOOP_VALUES.items()):
            return False
        # Those that it does not know it would leave out, and say so in its log alone.
        processors = self._model._get_logits_processor(config)
        return all(getattr(processor, "supports_continuous_batching", False) for processor in processors)

    def generate(self, prompts: Sequence[list[int]], config: Any, monitor: RunMonitor) -> list[list[int]]:
        """Return the new tokens of each prompt, the one that ends the text included.

        Args:
            prompts: token ids, without padding.
            config: a generation configuration that it `takes`.
            watch: told as steps are made; a loop that stands still says nothing.

        Raises:
            RuntimeError: the loop ended before its texts did, memory that ran out included.
        """
        found: dict[int, list[int]] = {}
        with self._running(config) as loop:
            for number, prompt in enumerate(prompts):
                loop.add_request(prompt, request_id=str(number))
            steps = 0
            while len(found) < len(prompts):
                result = loop.get_result(timeout=_POLL)
                made = getattr(loop, "current_batch", 0)
                if made != steps:
                    monitor.tick()
                steps = made
                if result is None and not loop.is_running():
                    raise RuntimeError("continuous batching ended before its texts did")
                if result is not None and result.error:
                    raise RuntimeError(result.error)
                if result is not None:
                    found[int(result.request_id)] = result.generated_tokens
        return [found[number] for number in range(len(prompts))]

    @contextmanager
    def _running(self, config: Any) -> Iterator[Any]:
        with torch.inference_mode(False), torch.no_grad():
            # It writes into the configuration it is given.
            loop = self._model.init_continuous_batching(
                copy.deepcopy(config), ContinuousBatchingConfig(**self._options)
            )
            loop.start()
        try:
            yield loop
        finally:
            loop.stop(block=True, hard_stop=True)


def try_continuous_batching(model: Any, **options: Any) -> ContinuousBatcher | None:
    """Return what generates with `model` in continuous batches; None where a trial fails or gives something else.

    Args:
        model: with a head for generation.
        options: as `ContinuousBatcher` takes them.
    """
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=False, max_new_tokens=_TRIAL_TOKENS, max_length=None, num_beams=1, num_return_sequences=1)
    found = ContinuousBatcher(model, **options)
    try:
        if found.supports(config) and found.generate(_TRIAL_PROMPTS, config, NullMonitor()) == _generate_each(
            model, config
        ):
            return found
    except Exception:  # any architecture may be loaded, and this is tried on none but those at hand: static batches do
        logger.debug("%s does not go in continuous batches", type(model).__name__, exc_info=True)
    logger.info("%s generates in static batches: continuous ones do not give the same", type(model).__name__)
    return None


def _generate_each(model: Any, config: Any) -> list[list[int]]:
    prompts = [torch.tensor([prompt], device=model.device) for prompt in _TRIAL_PROMPTS]
    return [
        model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)[
            0, prompt.shape[1] :
        ].tolist()
        for prompt in prompts
    ]
