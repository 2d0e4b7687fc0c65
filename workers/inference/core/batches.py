"""Length-bucketed batches: inputs sorted by length, cut by a token budget, run, and returned in their own order.

Sorting by exact length leaves almost no padding (as sentence-transformers' `encode` does); a budget in tokens, not in
items, fills the device equally with short texts and long ones (as fairseq's `--max-tokens` does). The caller passes the
function that runs a batch; nothing here knows about models.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from common.errors import Cancelled, CodedError
from common.records import Failure
from workers.inference.core.async_copy import PendingResult
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.runner import RunMonitor
from workers.inference.core.token_budget import TokenBudget

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

#: A batch filled to this share takes no item shorter than this share of its longest: it would mostly be padding.
_MIN_FILL, _MIN_LENGTH_RATIO = 0.25, 0.9


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """One prepared piece of work; an input may have several, such as the windows of a long context."""

    position: int  #: of the input it belongs to
    tokens: int  #: its length
    value: T
    group: Hashable = None  #: what it has in common with the items that it may share a batch with, such as shapes


def make_batches(items: Sequence[Item[T]], budget: TokenBudget) -> Iterator[list[Item[T]]]:
    """Yield batches of each group of `items`, longest first, so that memory runs out in the first batch or never."""
    groups: dict[Hashable, list[Item[T]]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    for group in groups.values():
        yield from _batches_of_group(group, budget)


def _batches_of_group(items: Sequence[Item[T]], budget: TokenBudget) -> Iterator[list[Item[T]]]:
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
    """Whether a batch of `tokens` can take an item that is no longer than any of its own."""
    if len(batch) == budget.items:
        return False
    if not budget.pads_to_longest:
        return tokens + item.tokens <= budget.tokens
    longest = batch[0].tokens
    filled = longest * len(batch) >= budget.tokens * _MIN_FILL
    if budget.splits_by_length and filled and item.tokens < longest * _MIN_LENGTH_RATIO:
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
    """Return the output of `forward` for each item, or its failure, in the order of `items`.

    A batch that raises is halved until the items at fault are alone: one bad item costs only itself. A `PendingResult`
    is read once the next batch has started.

    Args:
        items: prepared inputs.
        forward: takes the values of one batch, returns as many results in the same order.
        budget: lowered in place when memory runs out.
        monitor: gets the positions of all items on the device before each batch starts.

    Raises:
        RuntimeError: the device is lost (`is_device_lost`).
    """
    results: dict[int, R | Failure] = {}  # by the id of the item
    pending = list(make_batches(items, budget))[::-1]

    def attempt(
        batch: list[Item[T]], call: Callable[[], Sequence[R] | PendingResult[R]]
    ) -> tuple[list[Item[T]], PendingResult[R] | None]:
        found = _run_or_split(call, batch, pending, budget)
        if isinstance(found, PendingResult):
            return batch, found
        if found:
            budget.tokens_run += _tokens(batch, budget)
            results.update(zip(map(id, batch), found, strict=True))
        return [], None

    running: tuple[list[Item[T]], PendingResult[R] | None] = ([], None)
    while pending or running[0]:
        (previous, result), running = running, ([], None)
        if pending:
            batch = pending.pop()
            monitor.batch(sorted({item.position for item in (*batch, *previous)}))
            running = attempt(batch, partial(forward, [item.value for item in batch]))
        if result:
            attempt(previous, result.read)
    return [results[id(item)] for item in items]


def _run_or_split(
    call: Callable[[], Sequence[R] | PendingResult[R]],
    batch: list[Item[T]],
    pending: list[list[Item[T]]],
    budget: TokenBudget,
) -> Sequence[R | Failure] | PendingResult[R]:
    """Return what `call` gives for a batch; if it raises, return nothing and add the halves to `pending`."""
    try:
        return call()
    except (Cancelled, CodedError):
        raise
    except Exception as error:  # any architecture may be loaded, and may raise anything
        if is_device_lost(error):  # every further call would fail too: only a new process helps
            raise
        out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            _free_memory()
        if len(batch) == 1:
            if out_of_memory:
                return [Failure("out_of_memory", "This record alone does not fit into the device's memory.")]
            return [Failure.from_exception("runner_error", error)]
        if out_of_memory:
            budget.lower(_tokens(batch, budget))
        middle = len(batch) // 2
        pending += [batch[middle:], batch[:middle]]
        return []


def _tokens(batch: Sequence[Item[T]], budget: TokenBudget) -> int:
    """Return the tokens that a batch takes on the device, with padding if there is any."""
    if not budget.pads_to_longest:
        return sum(item.tokens for item in batch)
    return max(item.tokens for item in batch) * len(batch)


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
