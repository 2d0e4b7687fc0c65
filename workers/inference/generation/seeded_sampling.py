"""Sampling that depends on the seed and the record alone: not on the batch a record is in, nor on its place there.

The Gumbel-max trick: the largest of `log p + G`, each G drawn from the Gumbel distribution, is a sample of p
(Gumbel 1954; Maddison, Tarlow and Minka, "A* Sampling", 2014). Each row draws its noise from a generator of its own,
which the seed and the record start; torch's own sampling draws for the whole batch from one.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from common.records import Json

#: In transformers' order (`GenerationMixin._get_logits_processor`): setting, its warper, the values that do nothing.
_WARPERS: tuple[tuple[str, Any, tuple[float, ...]], ...] = (
    ("temperature", TemperatureLogitsWarper, (1.0,)),
    ("top_h", TopHLogitsWarper, ()),
    ("top_k", TopKLogitsWarper, (0,)),
    ("top_p", TopPLogitsWarper, (1.0,)),
    ("min_p", MinPLogitsWarper, ()),
    ("typical_p", TypicalLogitsWarper, (1.0,)),
    ("epsilon_cutoff", EpsilonLogitsWarper, (0.0, 1.0)),
    ("eta_cutoff", EtaLogitsWarper, (0.0, 1.0)),
)
#: Settings under which `generate` adds no warper of its own to ours.
DISABLED_WARPERS = {name: idle[0] if idle else None for name, _, idle in _WARPERS}


def logits_warpers(settings: Any) -> list[Any]:
    """Return the warpers that a generation configuration asks for.

    Raises:
        ValueError: a setting is out of its range.
    """
    wanted = ((getattr(settings, name, None), warper, idle) for name, warper, idle in _WARPERS)
    return [warper(value) for value, warper, idle in wanted if value is not None and value not in idle]


def record_seed(seed: int, record: Json) -> int:
    """Return the seed of one record: a stable hash of both, 0 up to 2**63 - 1."""
    text = json.dumps([seed, record], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class SeededSampler(LogitsProcessor):  # type: ignore[misc]
    """Makes the choice of the next token itself: every other token gets a score of minus infinity.

    Args:
        chosen_by: the warpers before the choice.
        seeds: one for each record of the batch.
        copies: `num_return_sequences`: rows of one record follow each other.
    """

    def __init__(self, chosen_by: Sequence[Any], seeds: Sequence[int], copies: int = 1) -> None:
        self._warpers = chosen_by
        self._seeds = [(seed + copy) % 2**63 for seed in seeds for copy in range(copies)]
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (rows, vocabulary): 0 for the token chosen in each row."""
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        chosen = (scores + self._noise(scores)).argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)

    def _noise(self, scores: torch.Tensor) -> torch.Tensor:
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds]
        exponential = torch.empty_like(scores)
        for row, generator in zip(exponential, self._generators, strict=True):
            row.exponential_(generator=generator)
        tiny = torch.finfo(scores.dtype).tiny
        return -exponential.clamp_min_(tiny).log_()
