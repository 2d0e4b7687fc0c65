"""Attention of one new token of each text on CPUs, as generation computes it at each step, by batched products.

torch's kernel is made for blocks of queries: in bfloat16 it takes twice as long for one query of each text. Like
`eager` attention of transformers, the products round scores to bfloat16 before softmax, so the number of texts that are
decoded together can change a text by rounding, as it does in any layer. Needless once torch's kernel is as fast.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.inference.loading.probe import best_seconds

#: Texts times heads of keys at least: for fewer, the steps between the products take longer than they save.
_MIN_PRODUCTS = 32
#: Shape of the keys that are timed: texts, heads, tokens, width.
_PROBE_SHAPE = (32, 4, 64, 64)
#: How much faster it must be to be used.
_MIN_SPEEDUP = 1.1


def use_decode_attention() -> None:
    """Have all models of this process attend by `decode_or_sdpa` where they would by transformers' `sdpa`.

    By the same name, as models and masks depend on it.
    """
    AttentionInterface.register("sdpa", decode_or_sdpa)


def decode_or_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output, (texts, queries, heads, width): for one query of each text by batched products.

    Args:
        module: the attention layer.
        query: (texts, heads, queries, width).
        key: (texts, heads of keys, tokens, width).
        value: (texts, heads of keys, tokens, width of values).
        attention_mask: (texts or 1, 1, queries, tokens), added to scores, or whether a token is seen; None: all are.
        options: of transformers' `sdpa_attention_forward`.
    """
    if _is_decoding(query, key, attention_mask, options) and _is_faster(query.dtype):
        scaling = options.get("scaling")
        return _attend(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None
    output: Tensor
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output, None


def _is_decoding(query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> bool:
    return (
        query.shape[2] == 1
        and query.device.type == "cpu"
        and len(query) == len(key)
        and len(key) * key.shape[1] >= _MIN_PRODUCTS
        and (mask is None or mask.shape[1] == 1)
        and not options.get("dropout")
        and all(options.get(name) is None for name in ("position_bias", "cache", "softcap"))
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    texts, heads, _, width = query.shape
    queries = query.view(texts, key.shape[1], -1, width)  # those that share the keys of a head together
    # Keys on the left: the other way around, oneDNN takes twice as long.
    found = torch.matmul(key, queries.transpose(2, 3)).transpose(2, 3)
    scores = found.to(torch.float32, memory_format=torch.contiguous_format) * scaling
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill_(~mask, torch.finfo(torch.float32).min)
    elif mask is not None:
        scores = scores + mask
    output = torch.matmul(scores.softmax(-1).to(query.dtype), value)
    return output.reshape(texts, 1, heads, -1)


@cache
def _is_faster(dtype: torch.dtype) -> bool:
    """Whether batched products in this dtype are faster than torch's kernel, on this machine."""
    if dtype != torch.bfloat16:
        return False
    texts, heads, tokens, width = _PROBE_SHAPE
    keys = torch.ones(_PROBE_SHAPE, dtype=dtype)
    query, mask = torch.ones(texts, heads, 1, width, dtype=dtype), torch.ones(texts, 1, 1, tokens, dtype=torch.bool)
    with torch.inference_mode():
        by_torch, batched = best_seconds(
            lambda: nn.functional.scaled_dot_product_attention(query, keys, keys, mask),
            lambda: _attend(query, keys, keys, mask, 1.0),
        )
    return by_torch > _MIN_SPEEDUP * batched
