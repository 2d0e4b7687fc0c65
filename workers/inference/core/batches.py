"""Batches: prepared inputs sorted by length, cut by a token budget, run, and given back in their own order.

Knows no model: what runs a batch is a function that its caller brings. Sorting by exact length leaves almost no
padding (the idea of sentence-transformers' `encode`); a budget in tokens, not a count, fills the device alike with
short texts and long ones (fairseq's `--max-tokens`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from common.errors import Cancelled, CodedError
from common.records import Failure
from workers.inference.core.async_copy import PendingResult
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import TokenBudget

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")


#: A batch that is this full takes no item shorter than this part of its longest: it would be padding for the most part.
_MIN_FILL, _MIN_LENGTH_RATIO = 0.25, 0.9


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """One prepared piece of work; an input may give several (the windows of a long context, say)."""

    position: int  #: of the input it belongs to
    tokens: int  #: its length
    value: T


def make_batches(items: Sequence[Item[T]], budget: TokenBudget) -> Iterator[list[Item[T]]]:
    """Yield batches of `items`, longest first, so that memory runs out in the first batch or never."""
    batch: list[Item[T]] = []
    tokens = 0
    for item in sorted(items, key=lambda i: -i.tokens):
        if batch and not _fits(batch, tokens, item, budget):
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += item.tokens
    if batch:
        yield batch


def _fits(batch: Sequence[Item[T]], tokens: int, item: Item[T], budget: TokenBudget) -> bool:
    """Whether a batch that holds so many tokens has room for an item that is no longer than any of its own."""
    if len(batch) == budget.items:
        return False
    if not budget.pads_to_longest:
        return tokens + item.tokens <= budget.tokens
    longest = batch[0].tokens
    if item.tokens < longest * _MIN_LENGTH_RATIO and longest * len(batch) >= budget.tokens * _MIN_FILL:
        return False
    if budget.equal_lengths and item.tokens != longest:
        return False
    return longest * (len(batch) + 1) <= budget.tokens


def run_batches(
    items: Sequence[Item[T]],
    forward: Callable[[list[T]], Sequence[R] | PendingResult[R]],
    budget: TokenBudget,
    monitor: RunMonitor,
) -> list[R | Failure]:
    """Return what `forward` gives for each item, or why it gave nothing, in the order of `items`.

    A batch that raises is halved until the items at fault stand alone: one bad item costs itself and no other. Results
    that come `Later` are read once the next batch was started; the watch is told of both.

    Args:
        items: prepared inputs; `position` goes to the watch.
        forward: takes the values of one batch, gives as many results in the same order.
        budget: lowered in place when memory runs out.
        watch: told before each batch.

    Raises:
        RuntimeError: the device is lost (`is_device_lost`).
    """
    results: dict[int, R | Failure] = {}
    index = {id(item): number for number, item in enumerate(items)}
    pending = list(make_batches(items, budget))[::-1]
    last: tuple[list[Item[T]], PendingResult[R]] | None = None

    def keep(batch: list[Item[T]], values: Sequence[R | Failure]) -> None:
        budget.tokens_run += _padded_tokens(batch) if values else 0
        results.update({index[id(item)]: value for item, value in zip(batch, values, strict=bool(values))})

    while pending or last:
        batch = pending.pop() if pending else []
        started: Sequence[R | Failure] | PendingResult[R] = []
        if batch:
            running = [*batch, *(last[0] if last else ())]
            monitor.batch(sorted({item.position for item in running}))
            started = _run_or_split(partial(forward, [item.value for item in batch]), batch, pending, budget)
        if last:
            keep(last[0], _run_or_split(last[1].read, last[0], pending, budget))
        last = (batch, started) if isinstance(started, PendingResult) else None
        if not isinstance(started, PendingResult):
            keep(batch, started)
    return [results[number] for number in range(len(items))]


def _run_or_split(
    call: Callable[[], V], batch: list[Item[T]], pending: list[list[Item[T]]], budget: TokenBudget
) -> V | list[Failure]:
    """Return what `call` gives for a batch; where it raises, nothing, the halves added to what is `waiting`."""
    try:
        return call()
    except (Cancelled, CodedError):
        raise
    except Exception as error:  # any architecture may be loaded, and may raise anything
        if is_device_lost(error):  # every further call would fail as well: only a fresh process helps
            raise
        if len(batch) == 1:
            return [_failure(error)]
        pending.extend(_halves(batch, error, budget))
        return []


def _halves(batch: list[Item[T]], error: Exception, budget: TokenBudget) -> list[list[Item[T]]]:
    if is_out_of_memory(error):
        budget.lower(_padded_tokens(batch))
        _free_memory()
    middle = len(batch) // 2
    return [batch[middle:], batch[:middle]]


def _padded_tokens(batch: Sequence[Item[T]]) -> int:
    return max(item.tokens for item in batch) * len(batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by any of the names that torch, numpy and Python have for it."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in text
        or "CUDA out of memory" in text
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether this is an error of the GPU after which all further calls in the process fail too."""
    text = str(error)
    fatal = isinstance(error, RuntimeError) and "CUDA error" in text and "out of memory" not in text
    return fatal and not is_out_of_memory(error)


def _failure(error: Exception) -> Failure:
    if is_out_of_memory(error):
        _free_memory()
        return Failure("out_of_memory", "This record alone does not fit into the device's memory.")
    return Failure("runner_error", f"{type(error).__name__}: {error}"[:2000])


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
