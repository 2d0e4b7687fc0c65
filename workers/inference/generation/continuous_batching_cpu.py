"""Continuous batching on a CPU: texts that end leave the batch, and the next prompts take their places.

What a step of decoding costs depends little on how many texts share it, since each step reads all weights; what a
prompt costs depends on its tokens, padding included. So prompts are prefilled in groups of about equal length, and then
decoded together in as many rows as the cache may hold. What all prompts begin with, such as an instruction, is
prefilled once. On a GPU, transformers' own loop does all this (`workers.inference.generation.continuous_batching`); on
a CPU its attention compares each row with the tokens of all.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from workers.inference.core.batches import Item, make_batches
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import DEFAULT_TOKENS, MAX_ITEMS, TokenBudget
from workers.inference.generation.continuous_batching import supports_config
from workers.inference.generation.row_cache import RowCache
from workers.inference.loading.dtypes import is_reduced_precision
from workers.inference.loading.outputs_match import outputs_match

#: Bytes of the cache at most; it always holds one text.
_CACHE_BYTES = 1 << 30
#: Columns of the cache beyond those of the longest text: how many steps pass until its contents are moved to the left.
_SPARE_COLUMNS = 64
#: Prompts wait until this share of the rows is free: the more are prefilled together, the less each costs.
_FREE_SHARE = 0.125
#: A common prefix is prefilled once if that saves as many tokens: a forward pass of few costs as much as one of many.
_MIN_SAVED_TOKENS = 128
#: Prompts of two lengths, of tokens that every vocabulary has, and how many tokens they have in common.
_PROBE_PROMPTS, _PROBE_COMMON = ([5, 6, 7, 8, 9, 5], [5, 6, 8]), 2

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
        self._shares_prefix = self._prefix_changes_nothing()

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
        prefix = _common_prefix(prompts) if self._shares_prefix else []
        with torch.inference_mode():
            shared = self._prefill([_Text(prefix)])[0] if prefix else None
            while waiting or batch.texts:
                while waiting and batch.cache.free >= min(len(waiting), max(1, int(rows * _FREE_SHARE))):
                    monitor.tick()
                    group = _take_group(waiting, batch.cache.free, len(prefix))
                    prefilled, logits = self._prefill(group, shared)
                    batch.join(group, prefilled, choose(logits))
                if batch.texts:
                    monitor.tick()
                    batch.append(choose(self._decode(batch)))
        return [text.new for text in texts]

    def _prefill(self, group: Sequence[_Text], prefix: Cache | None = None) -> tuple[Cache, Tensor]:
        """Return the states of these prompts, padded on the left, and the logits after them, (texts, vocabulary).

        Args:
            group: their texts.
            prefix: the states of tokens that all of them begin with, and one or more follow.
        """
        start = 0 if prefix is None else prefix.get_seq_length()
        rests = [text.prompt[start:] for text in group]
        width = max(map(len, rests))
        gaps = [width - len(rest) for rest in rests]
        ids = torch.tensor([[0] * gap + rest for gap, rest in zip(gaps, rests, strict=True)])
        offsets = torch.arange(width) - torch.tensor(gaps)[:, None]  # negative for padding
        mask = (offsets >= 0).long()
        cache = DynamicCache(config=self._model.config)
        if prefix is not None:
            mask = torch.cat([mask.new_ones(len(group), start), mask], dim=1)
            for number, layer in enumerate(prefix.layers):
                parts = (part.expand(len(group), -1, -1, -1) for part in (layer.keys, layer.values))
                cache.update(*parts, number)
        logits = self._forward(ids, mask, offsets.clamp(min=0) + start, cache, first=True)
        if prefix is not None:
            _close_gaps(cache, prefix, gaps)
        return cache, logits

    def _prefix_changes_nothing(self) -> bool:
        """Whether prompts give the same if their prefix is prefilled before, with padding between it and the rest."""
        texts = [_Text(prompt) for prompt in _PROBE_PROMPTS]
        with torch.inference_mode():
            prefix, _ = self._prefill([_Text(texts[0].prompt[:_PROBE_COMMON])])
            (_, expected), (_, found) = self._prefill(texts), self._prefill(texts, prefix)
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


def _common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """Return what all prompts begin with, without the last token of any; nothing if it is not worth a forward pass."""
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    length = next((at for at in range(most) if first[at] != last[at]), most)
    return first[:length] if length * (len(prompts) - 1) >= _MIN_SAVED_TOKENS else []


def _close_gaps(cache: Cache, prefix: Cache, gaps: Sequence[int]) -> None:
    """Move the prefix of each row to the right, over the padding behind it."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row, gap in enumerate(gaps):
        rows[gap].append(row)
    del rows[0]
    start = prefix.get_seq_length()
    for layer, source in zip(cache.layers, prefix.layers, strict=True):
        for gap, moved in rows.items():
            layer.keys[moved, :, gap : gap + start] = source.keys
            layer.values[moved, :, gap : gap + start] = source.values


def _take_group(waiting: list[_Text], free: int, prefilled: int) -> list[_Text]:
    """Remove and return the first prompts that are about equally long, without their first `prefilled` tokens."""
    items = [Item(number, len(text.prompt) - prefilled, text) for number, text in enumerate(waiting[:free])]
    group = next(make_batches(items, TokenBudget(DEFAULT_TOKENS["cpu"], free)))
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
