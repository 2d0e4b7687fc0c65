"""Token callback: what `generate` runs at every token, to check for cancellation and to sample by seeds."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from workers.inference.core.runner import RunMonitor
from workers.inference.generation.seeded_sampling import DISABLED_WARPERS, SeededSampler, logits_warpers


class CancelCriteria(StoppingCriteria):  # type: ignore[misc]
    """Stops no text by itself; calls the monitor at every token, which raises once the chunk is cancelled."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return False for each of the texts, of shape (texts, tokens)."""
        self._monitor.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def token_callbacks(config: Any, monitor: RunMonitor, seeds: Sequence[int] | None) -> dict[str, Any]:
    """Return arguments for `generate` that make it cancellable, and sample by `seeds`, if given, one per record."""
    callbacks: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([CancelCriteria(monitor)])}
    if seeds is not None:
        sampler = SeededSampler(logits_warpers(config), seeds, config.num_return_sequences or 1)
        callbacks |= {**DISABLED_WARPERS, "logits_processor": LogitsProcessorList([sampler])}
    return callbacks
