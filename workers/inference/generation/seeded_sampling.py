"""Seeded sampling: a sampled text depends on the seed and the record alone, not on its batch or its place in it.

The Gumbel-max trick: the largest of `log p + G`, each G drawn from the Gumbel distribution, is a sample of p
(Gumbel 1954; Maddison, Tarlow and Minka, "A* Sampling", 2014). Each row draws its noise from its own generator, seeded
by the job's seed and the record; torch's own sampling draws for the whole batch from one generator.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation import logits_process

from common.errors import ModelError
from common.records import Json

#: In transformers' order (`GenerationMixin._get_logits_processor`): parameter, warper, the values without effect.
_WARPERS: tuple[tuple[str, Any, tuple[float, ...]], ...] = (
    ("temperature", logits_process.TemperatureLogitsWarper, (1.0,)),
    ("top_h", logits_process.TopHLogitsWarper, ()),
    ("top_k", logits_process.TopKLogitsWarper, (0,)),
    ("top_p", logits_process.TopPLogitsWarper, (1.0,)),
    ("min_p", logits_process.MinPLogitsWarper, ()),
    ("typical_p", logits_process.TypicalLogitsWarper, (1.0,)),
    ("epsilon_cutoff", logits_process.EpsilonLogitsWarper, (0.0, 1.0)),
    ("eta_cutoff", logits_process.EtaLogitsWarper, (0.0, 1.0)),
)
#: Parameters with which `generate` adds no warpers of its own.
DISABLED_WARPERS = {name: noop[0] if noop else None for name, _, noop in _WARPERS}


def logits_warpers(config: Any) -> list[Any]:
    """Return the warpers that a generation configuration asks for.

    Raises:
        ValueError: a parameter is out of its range.
    """
    chosen = ((getattr(config, name, None), warper, noop) for name, warper, noop in _WARPERS)
    return [warper(value) for value, warper, noop in chosen if value is not None and value not in noop]


def sampling_seed(seed: int | None, config: Any) -> int | None:
    """Return the job's seed, or None where nothing is sampled.

    Raises:
        ModelError: `bad_param`, a seed together with beam search.
    """
    if not config.do_sample:
        return None
    if seed is not None and (config.num_beams or 1) > 1:
        raise ModelError("bad_param", "seed cannot be combined with beam search: leave it out, or set num_beams=1.")
    return seed


def record_seed(seed: int, record: Json) -> int:
    """Return the seed of one record: a stable hash of both, from 0 to 2**63 - 1."""
    text = json.dumps([seed, record], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class SeededSampler(LogitsProcessor):  # type: ignore[misc]
    """Samples the next token itself: every other token gets a score of minus infinity.

    Args:
        warpers: applied to the scores first.
        seeds: one for each record of the batch.
        copies: `num_return_sequences`: the rows of one record are adjacent.
    """

    def __init__(self, warpers: Sequence[Any], seeds: Sequence[int], copies: int = 1) -> None:
        self._warpers = warpers
        self._seeds = [(seed + copy) % 2**63 for seed in seeds for copy in range(copies)]
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (rows, vocabulary): 0 for the token sampled in each row."""
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        chosen = (scores + self._gumbel_noise(scores)).argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)

    def _gumbel_noise(self, scores: torch.Tensor) -> torch.Tensor:
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds]
        exponential = torch.empty_like(scores)
        for row, generator in zip(exponential, self._generators, strict=True):
            row.exponential_(generator=generator)
        tiny = torch.finfo(scores.dtype).tiny
        return -exponential.clamp_min_(tiny).log_()
