"""Token callbacks: what `generate` runs at every token to cancel, to follow constraints, and to sample by seeds."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from workers.inference.core.runner import RunMonitor
from workers.inference.generation.constrained_decoding import CompiledConstraint, ConstraintProcessor
from workers.inference.generation.logprobs import LogprobRecorder
from workers.inference.generation.seeded_sampling import DISABLED_WARPERS, SeededSampler, logits_warpers


class CancelCriteria(StoppingCriteria):  # type: ignore[misc]
    """Stops no text by itself; calls the monitor at every token, which raises once the chunk is cancelled."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return False for each of the texts, of shape (texts, tokens)."""
        self._monitor.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def token_callbacks(
    config: Any,
    monitor: RunMonitor,
    seeds: Sequence[int] | None = None,
    constraints: Sequence[CompiledConstraint | None] = (),
    recorder: LogprobRecorder | None = None,
) -> dict[str, Any]:
    """Return arguments for `generate` that make it cancellable.

    Args:
        config: the generation configuration.
        monitor: called at every token.
        seeds: to sample by, one for each record; None: as torch does.
        constraints: that the texts must meet, one for each record, None where there is none.
        recorder: of the tokens' log-probabilities.
    """
    criteria = [CancelCriteria(monitor), *([recorder] if recorder else ())]
    callbacks: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList(criteria)}
    copies = config.num_return_sequences or 1
    processors: list[LogitsProcessor] = []
    if any(constraints):
        processors.append(ConstraintProcessor(constraints, copies))
    if seeds is not None:
        processors.append(SeededSampler(logits_warpers(config), seeds, copies))
        callbacks |= DISABLED_WARPERS
    if processors:
        callbacks["logits_processor"] = LogitsProcessorList(processors)
    return callbacks
