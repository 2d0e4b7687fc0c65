"""Faster attention for CPUs: one batched product for all texts and heads of a batch, and for packed rows.

torch's kernel multiplies blocks of 32 rows one by one. In bfloat16 that takes twice as long for texts of some 100
tokens, and three times for those of 16; in float32 it depends on the processor, so it is timed (`batched_is_faster`).
It needs less memory, so long texts stay with it. Needless once torch's is as fast.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.fallbacks import count_fallback
from workers.inference.loading.outputs_match import dummy_output, expected_output
from workers.inference.loading.probe import best_seconds

logger = logging.getLogger(__name__)

#: Names of our attention in transformers: in the model's dtype, and in bfloat16 whatever that is.
ATTENTION, ATTENTION_BFLOAT16 = "hugqueue_batched", "hugqueue_batched_bfloat16"
#: torch's own.
_SDPA = "sdpa"
#: The longest texts in tokens: beyond, scores no longer fit into the caches of a processor.
_MAX_TOKENS = {torch.float32: 256, torch.bfloat16: 1024}
#: Scores of a batch at most, in all heads; more take more memory than the rest of the model.
_MAX_SCORES = 1 << 25
#: Numbers in a vector register: softmax of fewer than these is ten times as slow.
_VECTOR = 16
#: Packed texts are attended together if none is shorter than this share of the longest, up to that many tokens.
_MIN_LENGTH_RATIO, _RUN_TOKENS = 0.85, 1024
#: Shape that is timed: texts, heads, tokens, width; as large as a batch, which a processor's first caches do not hold.
_PROBE_SHAPE, _PROBE_ROUNDS = (32, 12, 64, 32), 6
#: How much faster it must be to be used.
_MIN_SPEEDUP = 1.1


def batched_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output of a batch, of shape (texts, tokens, heads, width).

    Args:
        module: the attention layer.
        query: (texts, heads, tokens, width).
        key: the same.
        value: the same.
        attention_mask: (texts or 1, 1, tokens or 1, tokens), whether a token sees another; None: it sees all.
        dtype: to compute in; None: that of `query`.
        options: as `sdpa_attention_forward` of transformers takes them.
    """
    if not _suits(module, query, key, value, attention_mask, dtype or query.dtype, options):
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    scaling = options.get("scaling")
    parts = query, key, value
    output = _attend(parts, attention_mask, scaling or query.shape[-1] ** -0.5, dtype or query.dtype)
    return output.to(query.dtype), None


for _name, _dtype in ((ATTENTION, None), (ATTENTION_BFLOAT16, torch.bfloat16)):
    AttentionInterface.register(_name, partial(batched_attention, dtype=_dtype))
    AttentionMaskInterface.register(_name, sdpa_mask)


def use_batched_attention(model: Any, agrees: Callable[[Tensor, Tensor], bool], *, bfloat16: bool = False) -> None:
    """Let `model`, on a CPU, attend by batched products if that is faster here and gives the same.

    Args:
        model: changed in place if it attends by torch's kernel.
        agrees: whether the output with them, the first argument, is close enough to that with torch's kernel.
        bfloat16: whether to compute them in bfloat16, whatever the model's dtype, if that is faster.
    """
    if getattr(model.config, "_attn_implementation", None) != _SDPA:
        return
    bfloat16 = bfloat16 and batched_is_faster(torch.bfloat16, model.dtype)
    if not bfloat16 and not batched_is_faster(model.dtype, model.dtype):
        return
    expected = expected_output(model)
    if expected is None:
        return
    try:
        model.set_attn_implementation(ATTENTION_BFLOAT16 if bfloat16 else ATTENTION)
        if agrees(dummy_output(model), expected):
            return
    except Exception as error:  # any architecture may be loaded, and may raise anything
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        logger.debug("%s fails with batched attention", type(model).__name__, exc_info=True)
        count_fallback("cpu_attention", error)
    model.set_attn_implementation(_SDPA)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    begins: Tensor,
    scaling: float,
    side: int | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the attention output of texts packed into one row, (1, tokens, heads, width).

    Args:
        query: (1, heads, tokens, width).
        key: the same.
        value: the same.
        begins: (texts + 1,), where each text begins, and the end.
        scaling: of the scores.
        side: neighbors that a token sees on each side; None: all.
        dtype: to compute in; None: that of `query`.
    """
    dtype = dtype or query.dtype
    ratio = _MIN_LENGTH_RATIO if batched_is_faster(dtype, query.dtype) else 1.0
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]
    outputs = [_attend_run(run, rows, scaling, side, dtype) for run in _runs(tuple(begins.tolist()), ratio)]
    return torch.cat(outputs)[None].to(query.dtype)


@dataclass(frozen=True, slots=True)
class _Run:
    """Packed texts of about equal length that are attended together, padded to the longest."""

    begin: int  #: the first token in the packed row
    end: int  #: behind the last one
    texts: int
    tokens: int  #: of the longest
    source: Tensor | None  #: (texts x tokens,), the place of each token in the row; None: nothing is padded
    seen: Tensor | None  #: (texts, 1, 1, tokens), which are not padding
    kept: Tensor | None  #: the places of those that are not padding


@lru_cache(maxsize=2)  # the layers of a model ask for the same
def _runs(begins: tuple[int, ...], ratio: float) -> list[_Run]:
    """Return how to attend to packed texts; `ratio`: of the shortest text of a run to the longest, at least."""
    lengths = [end - begin for begin, end in itertools.pairwise(begins)]
    runs, first = [], 0
    while first < len(lengths):
        last = first + 1
        while last < len(lengths) and _goes_with(lengths[first:last], lengths[last], ratio):
            last += 1
        runs.append(_run(begins[first], lengths[first:last]))
        first = last
    return runs


def _goes_with(lengths: Sequence[int], other: int, ratio: float) -> bool:
    longest, shortest = max(*lengths, other), min(*lengths, other)
    return shortest >= ratio * longest and (len(lengths) + 1) * longest <= _RUN_TOKENS


def _run(begin: int, lengths: Sequence[int]) -> _Run:
    sizes, longest, end = torch.tensor(lengths), max(lengths), begin + sum(lengths)
    if min(lengths) == longest:
        return _Run(begin, end, len(lengths), longest, None, None, None)
    seen = torch.arange(longest) < sizes[:, None]
    kept = seen.flatten().nonzero().squeeze(1)
    source = torch.zeros(len(lengths) * longest, dtype=torch.int64)  # padding repeats the first token of the row
    source[kept] = torch.arange(begin, end)
    return _Run(begin, end, len(lengths), longest, source, seen[:, None, None], kept)


def _attend_run(run: _Run, rows: Sequence[Tensor], scaling: float, side: int | None, dtype: torch.dtype) -> Tensor:
    """Return the attention output of a run, (tokens, heads, width), as it is packed.

    Args:
        run: of the packed row.
        rows: query, key and value of the whole row, (tokens, heads, width).
        scaling: of the scores.
        side: neighbors that a token sees on each side; None: all.
        dtype: to compute in.
    """
    padded = []
    for row in rows:
        part = row[run.begin : run.end] if run.source is None else row.index_select(0, run.source)
        padded.append(part.unflatten(0, (run.texts, run.tokens)).transpose(1, 2))
    mask = run.seen
    if side is not None:
        near = torch.ones(run.tokens, run.tokens, dtype=torch.bool).tril(side).triu(-side)[None, None]
        mask = near if mask is None else mask & near
    if run.tokens <= _MAX_TOKENS.get(dtype, 0) and batched_is_faster(dtype, rows[0].dtype):
        output = _attend(padded, mask, scaling, dtype)
    else:
        output = nn.functional.scaled_dot_product_attention(*padded, mask, scale=scaling).transpose(1, 2)
    found = output.flatten(0, 1)
    return found if run.kept is None else found.index_select(0, run.kept)


@cache
def batched_is_faster(dtype: torch.dtype, own: torch.dtype) -> bool:
    """Whether batched products in a dtype are faster than torch's kernel in the model's own, on this machine."""
    if dtype not in _MAX_TOKENS:
        return False
    texts, heads, tokens, width = _PROBE_SHAPE
    inputs = torch.ones(texts, tokens, heads, width, dtype=own).transpose(1, 2)  # as models have them
    with torch.inference_mode():
        by_torch, batched = best_seconds(
            lambda: nn.functional.scaled_dot_product_attention(inputs, inputs, inputs),
            lambda: _attend([inputs] * 3, None, 1.0, dtype),
            rounds=_PROBE_ROUNDS,
        )
    return by_torch > _MIN_SPEEDUP * batched


def _suits(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> bool:
    """Whether this is attention of whole texts to themselves that `_attend` can compute, and fast."""
    texts, heads, tokens, _ = query.shape
    causal = options.get("is_causal")
    return (
        query.shape == key.shape == value.shape
        and tokens <= _MAX_TOKENS.get(dtype, 0)
        and texts * heads * tokens * tokens <= _MAX_SCORES
        and (mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1 and mask.shape[3] == tokens))
        and (mask is not None or not (getattr(module, "is_causal", True) if causal is None else causal))
        and not any(options.get(name) is not None for name in ("position_bias", "cache", "softcap"))
        and not options.get("dropout")
    )


def _attend(parts: Sequence[Tensor], mask: Tensor | None, scaling: float, dtype: torch.dtype) -> Tensor:
    """Return the attention output, (texts, tokens, heads, width).

    Args:
        parts: query, key and value, each of shape (texts, heads, tokens, width).
        mask: as in `batched_attention`.
        scaling: of the scores.
        dtype: to compute in.
    """
    query, key, value = parts
    texts, heads, tokens, width = query.shape
    seen = max(tokens, _VECTOR)  # the rest is masked
    queries = _joined(query, tokens, dtype)
    scores = torch.baddbmm(
        queries.new_empty(1, 1, 1).expand(len(queries), tokens, seen),  # times 0
        queries,
        _joined(key, seen, dtype).transpose(1, 2),
        beta=0,
        alpha=scaling,
    )
    lowest = torch.finfo(dtype).min
    scores[..., tokens:] = lowest
    if mask is not None:
        hidden = ~mask
        begin = int(hidden.any(dim=2).any(dim=0).int().argmax())  # padding on the right leaves most scores as they are
        scores.view(texts, heads, tokens, seen)[..., begin:tokens].masked_fill_(hidden[..., begin:], lowest)
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(dtype)
    output = torch.bmm(shares, _joined(value, seen, dtype))
    return output.view(texts, heads, tokens, width).transpose(1, 2).contiguous()


def _joined(values: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """Return (texts, heads, ..., width) as (texts x heads, tokens, width), with zeros at the end."""
    texts, heads, found, width = values.shape
    make = values.new_empty if found == tokens else values.new_zeros
    joined = make(texts, heads, tokens, width, dtype=dtype)
    joined[:, :, :found] = values
    return joined.view(-1, tokens, width)
