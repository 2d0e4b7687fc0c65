"""Warm-up and calibration: the first runs of a freshly loaded model, on sample records.

Warm-up absorbs the one-time cost of the first forward pass of a process (kernels are chosen, buffers allocated), and
shows at start, not in a job, that a model cannot do its task. Calibration finds how many tokens a batch should hold:
small batches leave a device idle, large ones overflow its caches and waste memory, and the best size depends on model,
dtype and device. The result is kept (`workers.device.client.token_budget_cache`).
"""

import logging
import time
from collections.abc import Mapping, Sequence

from common.errors import ModelError
from common.records import Json, Outcome
from workers.device.server.model_cache import LoadedModel
from workers.inference.core.runner import RunMonitor, Runner
from workers.inference.core.samples import samples
from workers.inference.core.token_budget import TokenBudget

logger = logging.getLogger(__name__)

#: Records in the measured warm-up run: enough for batches, few enough for a second or so on a CPU.
_MEASURED_RECORDS = 24
#: A first run that takes longer, in seconds, is not repeated: text generation on a CPU is slow.
_LONG_SECONDS = 2.0
#: Batch sizes that calibration tries, in padded tokens, by kind of device.
_SIZES: Mapping[str, Sequence[int]] = {
    "cpu": (512, 1024, 2048, 4096, 8192),
    "cuda": (8192, 16384, 32768, 65536, 131072, 262144),
}
#: Seconds after which no larger size is tried, by kind of device.
_MAX_SECONDS = {"cpu": 0.4, "cuda": 2.0}
#: A batch that runs in fewer seconds is timed several times, as the clock and other processes distort one measurement.
_SHORT_SECONDS, _ROUNDS = 0.05, 3
#: How much faster a larger batch must be to be worth its memory.
_MIN_GAIN = 1.05


class _KeepAliveMonitor:
    """A monitor for batches that hold no record of the chunk: it gives signs of life only."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor

    def batch(self, positions: Sequence[int]) -> None:
        """Give a sign of life."""
        self._monitor.tick()

    def tick(self) -> None:
        """Give a sign of life."""
        self._monitor.tick()


def warm_up(loaded: LoadedModel, monitor: RunMonitor) -> float | None:
    """Run the samples of the model's task; return its speed in records per second, or None if unknown.

    Raises:
        ModelError: the model cannot do its task.
    """
    inputs = samples(loaded.task)
    try:
        seconds, outcomes = _timed(loaded.runner, inputs, monitor)
        if seconds < _LONG_SECONDS:  # the first run includes one-time costs: measure another
            inputs = [inputs[number % len(inputs)] for number in range(_MEASURED_RECORDS)]
            seconds, outcomes = _timed(loaded.runner, inputs, monitor)
    except ModelError as error:
        if error.code != "bad_param":  # a runner that needs parameters gets them with its job
            raise
        logger.warning("%s was not warmed up: %s", loaded.title, error)
        return None
    failure = next((outcome.failure for outcome in outcomes if outcome.failure), None)
    if failure:
        logger.warning("warming up %s: a sample failed: %s", loaded.title, failure.message)
    return len(inputs) / max(seconds, 1e-9)


def calibrate(loaded: LoadedModel, known: int | None, monitor: RunMonitor) -> None:
    """Set how many tokens the runner's batches hold, once: `known` if given, else what is fastest now.

    Raises:
        Cancelled: the chunk was cancelled.
    """
    budget = loaded.runner.budget
    if budget is None or budget.calibrated:
        return
    if known is not None:
        budget.tokens, budget.calibrated = known, True
        return
    default, items = budget.tokens, budget.items
    try:
        budget.items = max(_SIZES["cuda"])  # the samples are short; it is tokens that are measured
        chosen = _find_fastest(loaded, budget, _KeepAliveMonitor(monitor), default) if items > 1 else default
        budget.calibrated = True
    except ModelError as error:  # a runner that needs parameters gets them with its job
        logger.debug("%s was not calibrated: %s", loaded.title, error)
        chosen, budget.calibrated = default, True
    finally:
        budget.tokens, budget.items = default, items
    budget.tokens = chosen
    logger.info("%s: batches of %d tokens", loaded.title, budget.tokens)


def _find_fastest(loaded: LoadedModel, budget: TokenBudget, monitor: RunMonitor, default: int) -> int:
    """Return the smallest size that is about as fast as any; `default` if time ran out before that was known."""
    kind, record = loaded.device.partition(":")[0], samples(loaded.task)[-1]
    before = budget.tokens_run
    _best_seconds(loaded.runner, [record], monitor)  # the first pass includes one-time costs
    each = budget.tokens_run - before
    best, chosen, begun = 0.0, default, time.perf_counter()
    if each < 2:  # this runner does not count in tokens
        return default
    for size in _SIZES[kind]:
        budget.tokens, inputs = size, [record] * max(1, size // each)
        rate = len(inputs) / _best_seconds(loaded.runner, inputs, monitor)
        if budget.tokens < size:  # memory ran out
            return min(budget.tokens, chosen)
        if rate <= best * _MIN_GAIN:
            return chosen
        best, chosen = rate, size
        if time.perf_counter() - begun > _MAX_SECONDS[kind]:
            return max(chosen, default)
    return chosen


def _best_seconds(runner: Runner, inputs: Sequence[Json], monitor: RunMonitor) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        best = min(best, _timed(runner, inputs, monitor)[0])
        if best > _SHORT_SECONDS:
            break
    return best


def _timed(runner: Runner, inputs: Sequence[Json], monitor: RunMonitor) -> tuple[float, list[Outcome]]:
    begun = time.perf_counter()
    outcomes = runner.run(inputs, {}, monitor)
    return time.perf_counter() - begun, outcomes
