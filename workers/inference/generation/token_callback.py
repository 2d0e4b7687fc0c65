"""A sign of life for every token of a generation: what makes a long batch visible, and a cancel felt within it."""

from typing import Any

import torch
from transformers import StoppingCriteria

from workers.inference.core.runner import RunMonitor


class CancelCriteria(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing by itself; tells the watch, which raises once the chunk was given up."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return that none of the texts, of shape (texts, tokens), is to end here."""
        self._monitor.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
