"""A sign of life for every token of a generation: what makes a long batch visible, and a cancel felt within it."""

from typing import Any

import torch
from transformers import StoppingCriteria

from workers.inference.core.runner import Watch


class Pulse(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing by itself; tells the watch, which raises once the chunk was given up."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return that none of the texts, of shape (texts, tokens), is to end here."""
        self._watch.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
