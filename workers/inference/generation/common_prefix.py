"""What all prompts of a batch begin with, such as an instruction: its keys and values are computed once."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

#: A prefix is computed once if that saves this many tokens at least: a forward pass of a few costs as much as one of
#: these.
_MIN_SAVED_TOKENS = 128
#: Kinds of rotary embeddings whose frequencies depend on how many tokens are computed together.
_ROTATIONS_BY_LENGTH = {"dynamic", "longrope"}


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """Return what all prompts begin with, without the last token of any; nothing if it is not worth a forward pass."""
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    length = next((at for at in range(most) if first[at] != last[at]), most)
    return first[:length] if length * (len(prompts) - 1) >= _MIN_SAVED_TOKENS else []


def rotates_by_length(model: nn.Module) -> bool:
    """Whether the states of a prefix depend on the length of what follows."""
    kinds = (getattr(module, "rope_type", None) for module in model.modules())
    every = (kind.values() if isinstance(kind, dict) else (kind,) for kind in kinds)
    return any(kind in _ROTATIONS_BY_LENGTH for found in every for kind in found)


def left_padded(prefix: Cache, gaps: Sequence[int], config: Any) -> Cache:
    """Return the first columns of several rows, as many as the prefix has: padding, then what fits of the prefix.

    Args:
        prefix: the states of one row, without padding.
        gaps: columns of padding on the left of each row.
        config: of the model.
    """
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row, gap in enumerate(gaps):
        rows[gap].append(row)
    start, cache = prefix.get_seq_length(), DynamicCache(config=config)
    for number, layer in enumerate(prefix.layers):
        # Zeros, as memory that was never written could hold NaN, which no attention mask hides.
        parts = [part.new_zeros(len(gaps), *part.shape[1:]) for part in (layer.keys, layer.values)]
        for gap, same in rows.items():
            for part, source in zip(parts, (layer.keys, layer.values), strict=True):
                part[same, :, gap:] = source[:, :, : max(0, start - gap)]
        cache.update(*parts, number)
    return cache
