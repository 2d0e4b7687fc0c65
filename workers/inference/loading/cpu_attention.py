"""Attention of packed rows on CPUs: texts of equal length are attended together.

In bfloat16, texts of about equal length are too, by one batched product for all texts and heads, where that is faster
(`batched_is_faster`): torch's kernel multiplies blocks of 32 rows one by one, which takes twice as long for texts of
some 100 tokens, and three times for those of 16. Like `eager` attention of transformers, the product rounds scores to
bfloat16 before softmax. It needs memory for them, so long texts stay with torch's kernel. Needless once that is as
fast.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor, nn

from workers.inference.loading.probe import best_seconds

#: The longest texts in tokens that a batched product takes: beyond, scores no longer fit into a processor's caches.
_MAX_TOKENS = 1024
#: Numbers in a vector register: softmax over fewer is ten times slower.
_VECTOR = 16
#: Texts are attended together by a batched product if none is shorter than this share of the longest, up to that many
#: tokens; by torch's kernel, which a mask makes slower, if their lengths are equal.
_MIN_LENGTH_RATIO, _RUN_TOKENS = 0.85, 1024
#: Shape that is timed: texts, heads, tokens, width.
_PROBE_SHAPE = (8, 12, 64, 32)
#: How much faster it must be to be used.
_MIN_SPEEDUP = 1.1


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    begins: Tensor,
    scaling: float,
    side: int | None,
) -> Tensor:
    """Return the attention output of texts packed into one row, (1, tokens, heads, width).

    Args:
        query: (1, heads, tokens, width).
        key: the same.
        value: the same.
        begins: (texts + 1,), where each text begins, and the end.
        scaling: of the scores.
        side: neighbors that a token sees on each side; None: all.
    """
    ratio = _MIN_LENGTH_RATIO if batched_is_faster(query.dtype) else 1.0
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]
    return torch.cat([_attend_run(run, rows, scaling, side) for run in _runs(tuple(begins.tolist()), ratio)])[None]


@cache
def batched_is_faster(dtype: torch.dtype) -> bool:
    """Whether batched products in this dtype are faster than torch's kernel, on this machine."""
    if dtype != torch.bfloat16:
        return False
    texts, heads, tokens, width = _PROBE_SHAPE
    inputs = torch.ones(texts, tokens, heads, width, dtype=dtype).transpose(1, 2)  # as models have them
    with torch.inference_mode():
        by_torch, batched = best_seconds(
            lambda: nn.functional.scaled_dot_product_attention(inputs, inputs, inputs),
            lambda: _attend([inputs] * 3, None, 1.0),
        )
    return by_torch > _MIN_SPEEDUP * batched


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
    runs: list[_Run] = []
    first, shortest, longest = 0, lengths[0], lengths[0]
    for at, length in enumerate(lengths):
        lowest, highest = min(shortest, length), max(longest, length)
        if at > first and (lowest < ratio * highest or (at - first + 1) * highest > _RUN_TOKENS):
            runs.append(_run(begins[first], lengths[first:at]))
            first, lowest, highest = at, length, length
        shortest, longest = lowest, highest
    return [*runs, _run(begins[first], lengths[first:])]


def _run(begin: int, lengths: Sequence[int]) -> _Run:
    sizes, longest, end = torch.tensor(lengths), max(lengths), begin + sum(lengths)
    if min(lengths) == longest:
        return _Run(begin, end, len(lengths), longest, None, None, None)
    places = torch.arange(longest)
    starts = begin + sizes.cumsum(0) - sizes
    # Padding repeats the text's own last token: 0 times another's NaN would be NaN.
    source = (starts[:, None] + torch.minimum(places, sizes[:, None] - 1)).flatten()
    seen = places < sizes[:, None]
    return _Run(begin, end, len(lengths), longest, source, seen[:, None, None], seen.flatten().nonzero().squeeze(1))


def _attend_run(run: _Run, rows: Sequence[Tensor], scaling: float, side: int | None) -> Tensor:
    """Return the attention output of a run, (tokens, heads, width), as it is packed.

    Args:
        run: of the packed row.
        rows: query, key and value of the whole row, (tokens, heads, width).
        scaling: of the scores.
        side: neighbors that a token sees on each side; None: all.
    """
    padded = []
    for row in rows:
        part = row[run.begin : run.end] if run.source is None else row.index_select(0, run.source)
        padded.append(part.unflatten(0, (run.texts, run.tokens)).transpose(1, 2))
    mask = run.seen
    if side is not None:
        near = torch.ones(run.tokens, run.tokens, dtype=torch.bool).tril(side).triu(-side)[None, None]
        mask = near if mask is None else mask & near
    if run.tokens <= _MAX_TOKENS and batched_is_faster(rows[0].dtype):
        output = _attend(padded, mask, scaling)
    else:
        output = nn.functional.scaled_dot_product_attention(*padded, mask, scale=scaling).transpose(1, 2)
    found = output.flatten(0, 1)
    return found if run.kept is None else found.index_select(0, run.kept)


def _attend(parts: Sequence[Tensor], mask: Tensor | None, scaling: float) -> Tensor:
    """Return the attention output, (texts, tokens, heads, width), by batched products.

    Args:
        parts: query, key and value, each of shape (texts, heads, tokens, width).
        mask: (texts or 1, 1, tokens or 1, tokens), whether a token sees another; None: it sees all.
        scaling: of the scores.
    """
    query, key, value = parts
    texts, heads, tokens, width = query.shape
    seen = max(tokens, _VECTOR)  # the rest is masked
    queries = _joined(query, tokens)
    scores = torch.baddbmm(
        queries.new_empty(1, 1, 1).expand(len(queries), tokens, seen),  # times 0
        queries,
        _joined(key, seen).transpose(1, 2),
        beta=0,
        alpha=scaling,
    )
    lowest = torch.finfo(query.dtype).min
    scores[..., tokens:] = lowest
    if mask is not None:
        hidden = ~mask
        begin = int(hidden.any(dim=2).any(dim=0).int().argmax())  # padding on the right leaves most scores as they are
        scores.view(texts, heads, tokens, seen)[..., begin:tokens].masked_fill_(hidden[..., begin:], lowest)
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    output = torch.bmm(shares, _joined(value, seen))
    return output.view(texts, heads, tokens, width).transpose(1, 2)


def _joined(values: Tensor, tokens: int) -> Tensor:
    """Return (texts, heads, ..., width) as (texts x heads, tokens, width), with zeros at the end."""
    texts, heads, found, width = values.shape
    make = values.new_empty if found == tokens else values.new_zeros
    joined = make(texts, heads, tokens, width)
    joined[:, :, :found] = values
    return joined.view(-1, tokens, width)
