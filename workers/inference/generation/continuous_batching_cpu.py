"""Continuous batching on a CPU: texts that end leave the batch, and the next prompts take their places.

What a step of decoding costs depends little on how many texts share it, since each step reads all weights; what a
prompt costs depends on its tokens, padding included. So prompts are prefilled in groups of about equal length, and then
decoded together in as many rows as the cache may hold. On a GPU, transformers' own loop does this
(`workers.inference.generation.continuous_batching`); on a CPU its attention compares each row with the tokens of all.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from workers.inference.core.batches import Item, make_batches
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import DEFAULT_TOKENS, MAX_ITEMS, TokenBudget
from workers.inference.generation.common_prefix import common_prefix, left_padded, rotates_by_length
from workers.inference.generation.continuous_batching import supports_config
from workers.inference.generation.row_cache import RowCache
from workers.inference.loading.dtypes import is_reduced_precision
from workers.inference.loading.outputs_match import outputs_match

logger = logging.getLogger(__name__)

#: Bytes of the cache at most; it always holds one text.
_CACHE_BYTES = 1 << 30
#: Columns of the cache beyond those of the longest text: how many steps pass until its contents are moved to the left.
_SPARE_COLUMNS = 64
#: Prompts wait until this share of the rows is free: the more are prefilled together, the less each costs.
_FREE_SHARE = 0.125
#: Share of `_CACHE_BYTES` that the states of prompts prefilled together may take.
_GROUP_SHARE = 0.25
#: Prompts of tokens that every vocabulary has, and how many they have in common: more than the padding of one of them,
#: less than that of another.
_PROBE_PROMPTS, _PROBE_COMMON = ([5, 6, 7, 8, 9, 5], [5, 6, 7, 8, 9], [5, 6, 8]), 2

#: Takes logits, (rows, vocabulary); returns the tokens chosen.
_Choice = Callable[[Tensor], list[int]]


@dataclass(slots=True)
class _Text:
    """One text: its prompt, and the tokens generated so far."""

    prompt: list[int]
    new: list[int] = field(default_factory=list)


class CpuContinuousBatcher:
    """Generates text with one model in continuous batches.

    Args:
        model: with a head for generation.
        rows: how many texts are decoded together at most.

    Raises:
        TypeError: the model's cache holds something else than the keys and values of all tokens.
    """

    def __init__(self, model: Any, rows: int = MAX_ITEMS["cpu"]) -> None:
        self._model = model
        self._rows = rows
        self._options: dict[str, Any] = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        self._takes_positions = "position_ids" in signature(model.forward).parameters
        with torch.inference_mode():
            self._empty, _ = self._prefill([_Text([0])])  # one token tells the shape of the cache
        if any(type(layer) is not DynamicLayer for layer in self._empty.layers):
            raise TypeError(f"{type(model).__name__} has a cache of another kind: {self._empty}")
        self._bytes = sum(part.nbytes for layer in self._empty.layers for part in (layer.keys, layer.values))
        self._shares_prefix = not rotates_by_length(model) and self._prefix_changes_nothing()

    def supports(self, config: Any) -> bool:
        """Whether this configuration gives the same texts as `generate`."""
        return supports_config(self._model, config)

    def generate(self, prompts: Sequence[list[int]], config: Any, monitor: RunMonitor) -> list[list[int]]:
        """Return the new tokens of each prompt, including the one that ends the text.

        Args:
            prompts: token ids, without padding.
            config: a generation configuration that it `supports`.
            monitor: called before each forward pass.
        """
        texts = [_Text(prompt) for prompt in prompts]
        waiting = sorted(texts, key=lambda text: -len(text.prompt))  # the longest first, as `RowCache.join` needs it
        columns = len(waiting[0].prompt) + config.max_new_tokens + _SPARE_COLUMNS
        rows = min(len(texts), self._rows, max(1, _CACHE_BYTES // (self._bytes * columns)))
        batch = _Batch(RowCache(self._empty, rows, columns), config)
        choose = _token_choice(self._model, config)
        most = max(1, int(_CACHE_BYTES * _GROUP_SHARE) // (self._bytes * len(waiting[0].prompt)))
        with torch.inference_mode():
            prefix = self._prefill_common(prompts, monitor)
            while waiting or batch.texts:
                while waiting and batch.cache.free >= min(len(waiting), max(1, int(rows * _FREE_SHARE))):
                    monitor.tick()
                    group = _take_group(waiting, min(batch.cache.free, most), _length(prefix))
                    prefilled, logits = self._prefill(group, prefix)
                    batch.join(group, prefilled, choose(logits))
                if batch.texts:
                    monitor.tick()
                    batch.append(choose(self._decode(batch)))
        return [text.new for text in texts]

    def _prefill_common(self, prompts: Sequence[list[int]], monitor: RunMonitor) -> Cache | None:
        """Return the states of what all prompts begin with; None if they are to be computed with each prompt."""
        common = common_prefix(prompts) if self._shares_prefix else []
        if not common:
            return None
        monitor.tick()
        return self._prefill([_Text(common)])[0]

    def _prefill(self, group: Sequence[_Text], prefix: Cache | None = None) -> tuple[Cache, Tensor]:
        """Return the states of these prompts, padded on the left, and the logits after them, (texts, vocabulary).

        Args:
            group: their texts.
            prefix: the states of what all of them begin with, shorter than any: only the columns behind it are
                computed, which hold a part of it in the shorter prompts.
        """
        start = _length(prefix)
        longest = max(len(text.prompt) for text in group)
        gaps = [longest - len(text.prompt) for text in group]
        ids = torch.tensor([[0] * gap + text.prompt for gap, text in zip(gaps, group, strict=True)])
        positions = torch.arange(longest) - torch.tensor(gaps)[:, None]  # negative for padding
        config = self._model.config
        cache = DynamicCache(config=config) if prefix is None else left_padded(prefix, gaps, config)
        mask = (positions >= 0).long()
        return cache, self._forward(ids[:, start:], mask, positions[:, start:].clamp(min=0), cache, first=True)

    def _prefix_changes_nothing(self) -> bool:
        """Whether prompts give the same if what they have in common is computed before them."""
        texts = [_Text(prompt) for prompt in _PROBE_PROMPTS]
        try:
            with torch.inference_mode():
                prefix, _ = self._prefill([_Text(texts[0].prompt[:_PROBE_COMMON])])
                (_, expected), (_, found) = self._prefill(texts), self._prefill(texts, prefix)
        except Exception as error:  # any architecture may be loaded, and may raise anything
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            logger.debug("%s computes common prefixes anew", type(self._model).__name__, exc_info=True)
            return False
        return outputs_match(found, expected, loose=is_reduced_precision(self._model))

    def _decode(self, batch: "_Batch") -> Tensor:
        """Return the logits after the last token of each text, (texts, vocabulary)."""
        mask, positions = batch.cache.next_column()
        ids = torch.tensor([[text.new[-1]] for text in batch.texts])
        return self._forward(ids, mask, positions, batch.cache.states, first=False)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache, *, first: bool) -> Tensor:
        options = self._options | ({"position_ids": positions} if self._takes_positions else {})
        inputs = self._model.prepare_inputs_for_generation(
            ids, past_key_values=cache, attention_mask=mask, use_cache=True, is_first_iteration=first, **options
        )
        logits: Tensor = self._model(**inputs, return_dict=True).logits[:, -1].float()
        return logits


class _Batch:
    """The texts that are decoded together, in the order of their rows in the cache."""

    def __init__(self, cache: RowCache, config: Any) -> None:
        self.cache = cache
        self.texts: list[_Text] = []
        ends = config.eos_token_id
        self._ends = ends if isinstance(ends, list) else [ends]
        self._max_new_tokens = config.max_new_tokens

    def join(self, group: Sequence[_Text], prefilled: Cache, chosen: Sequence[int]) -> None:
        """Add texts, with the states of their prompts and the first token of each."""
        self.cache.join(prefilled, [len(text.prompt) for text in group])
        self.texts += group
        self._append(group, chosen)

    def append(self, chosen: Sequence[int]) -> None:
        """Add a token to each text; those that end leave."""
        self._append(self.texts, chosen)

    def _append(self, texts: Sequence[_Text], chosen: Sequence[int]) -> None:
        for text, token in zip(texts, chosen, strict=True):
            text.new.append(token)
        kept = [text.new[-1] not in self._ends and len(text.new) < self._max_new_tokens for text in self.texts]
        if not all(kept):
            self.texts = [self.texts[row] for row in self.cache.keep(kept)]


def _length(prefix: Cache | None) -> int:
    return 0 if prefix is None else int(prefix.get_seq_length())


def _take_group(waiting: list[_Text], most: int, computed: int) -> list[_Text]:
    """Remove and return the first prompts, at most that many, whose tokens behind the `computed` ones fit together."""
    items = [Item(number, len(text.prompt) - computed, text) for number, text in enumerate(waiting[:most])]
    group = next(make_batches(items, TokenBudget(DEFAULT_TOKENS["cpu"], most)))
    del waiting[: len(group)]
    return [item.value for item in group]


def _token_choice(model: Any, config: Any) -> _Choice:
    processors = model._get_logits_processor(config)
    unread = torch.empty(0, 0, dtype=torch.long)  # no processor that continuous batching supports reads the tokens

    def choose(logits: Tensor) -> list[int]:
        scores = processors(unread, logits)
        if config.do_sample:
            chosen = torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
        else:
            chosen = scores.argmax(dim=-1)
        return list(map(int, chosen))

    return choose
