"""How many tokens a batch should hold on this device: a short race, run once for each model.

Small batches leave a device waiting, large ones leave its caches and hold memory for nothing; where the best lies
depends on model, dtype and device. The result is kept (`workers.device.client.batch_size_cache`), so that the next
process need not ask.
"""

import logging
import time
from collections.abc import Mapping, Sequence

from common.errors import ModelError
from common.records import Json
from workers.device.server.model_cache import LoadedModel
from workers.inference.core.runner import RunMonitor, Runner
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget

logger = logging.getLogger(__name__)

#: Sizes that are tried, in padded tokens, and the seconds after which no larger one is begun, by kind of device.
_SIZES: Mapping[str, Sequence[int]] = {
    "cpu": (512, 1024, 2048, 4096, 8192),
    "cuda": (8192, 16384, 32768, 65536, 131072, 262144),
}
_MAX_SECONDS = {"cpu": 0.4, "cuda": 2.0}
#: A batch that ran in fewer seconds is run again: the clock and other processes weigh too much in it.
_SHORT_SECONDS, _ROUNDS = 0.05, 3
#: What a larger batch must bring to be worth its memory.
_MIN_GAIN = 1.05


class _KeepAliveMonitor:
    """A watch for batches that hold no record of the chunk."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor

    def batch(self, positions: Sequence[int]) -> None:
        """Give a sign of life."""
        self._monitor.tick()

    def tick(self) -> None:
        """Give a sign of life."""
        self._monitor.tick()


def calibrate(loaded: LoadedModel, known: int | None, monitor: RunMonitor) -> None:
    """Set how many tokens the runner's batches hold: as `known`, else as measured now, if it was not set yet.

    Raises:
        Cancelled: the chunk was given up.
    """
    budget = loaded.runner.budget
    if budget is None or budget.calibrated:
        return
    if known is not None:
        budget.tokens, budget.calibrated = known, True
        return
    usual, items = budget.tokens, budget.items
    try:
        budget.items = max(_SIZES["cuda"])  # the samples are short; it is tokens that are measured
        chosen = _find_fastest(loaded, budget, _KeepAliveMonitor(monitor), usual) if items > 1 else usual
        budget.calibrated = True
    except ModelError as error:  # a runner that wants parameters gets them with its job
        logger.debug("%s was not measured: %s", loaded.title, error)
        chosen, budget.calibrated = usual, True
    finally:
        budget.tokens, budget.items = usual, items
    budget.tokens = chosen
    logger.info("%s: batches of %d tokens", loaded.title, budget.tokens)


def _find_fastest(loaded: LoadedModel, budget: TokenBudget, monitor: RunMonitor, usual: int) -> int:
    """Return the smallest size that is about as fast as any; `usual` where the race ended before that was known."""
    kind, record = loaded.device.partition(":")[0], samples(loaded.task)[-1]
    before = budget.tokens_run
    _seconds(loaded.runner, [record], monitor)  # the first pass pays for what it warms
    each = budget.tokens_run - before
    best, chosen, begun = 0.0, usual, time.perf_counter()
    if each < 2:  # this runner does not count in tokens
        return usual
    for size in _SIZES[kind]:
        budget.tokens, inputs = size, [record] * max(1, size // each)
        rate = len(inputs) / _seconds(loaded.runner, inputs, monitor)
        if budget.tokens < size:  # memory ran out
            return min(budget.tokens, chosen)
        if rate <= best * _MIN_GAIN:
            return chosen
        best, chosen = rate, size
        if time.perf_counter() - begun > _MAX_SECONDS[kind]:
            return max(chosen, usual)
    return chosen


def _seconds(runner: Runner, inputs: Sequence[Json], monitor: RunMonitor) -> float:
    """Return how long the runner takes at its best."""
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        runner.run(inputs, {}, monitor)
        best = min(best, time.perf_counter() - begun)
        if best > _SHORT_SECONDS:
            break
    return best
