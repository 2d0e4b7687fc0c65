"""Warming up: a few sample records per task through a freshly loaded runner, before the first job needs it.

The first forward pass of a process is the slow one (kernels are chosen, buffers allocated); it also shows at start,
not in a job, that a model cannot do its task.
"""

import logging
import time
from collections.abc import Sequence

from common.errors import ModelError
from common.records import Json, Outcome
from workers.device.server.model_cache import LoadedModel
from workers.inference.core.runner import RunMonitor
from workers.inference.core.samples import samples

logger = logging.getLogger(__name__)

#: Records in the measured run: enough for batches, few enough for a second or so on a CPU.
_MEASURED_RECORDS = 24
#: A first run that took longer, in seconds, is measure enough: text generation on a CPU takes its time.
_LONG_SECONDS = 2.0


def warm_up(loaded: LoadedModel, monitor: RunMonitor) -> float | None:
    """Run the samples of the runner's task; return its speed in records per second, or None if unknown.

    Raises:
        ModelError: the model cannot do its task.
    """
    inputs = samples(loaded.task)
    try:
        seconds, outcomes = _timed(loaded, inputs, monitor)
        if seconds < _LONG_SECONDS:  # the first run pays for what it warms: measure another
            inputs = [inputs[number % len(inputs)] for number in range(_MEASURED_RECORDS)]
            seconds, outcomes = _timed(loaded, inputs, monitor)
    except ModelError as error:
        if error.code != "bad_param":  # a runner that wants parameters gets them with its job
            raise
        logger.warning("%s was not warmed up: %s", loaded.title, error)
        return None
    failure = next((outcome.failure for outcome in outcomes if outcome.failure), None)
    if failure:
        logger.warning("warming up %s: a sample failed: %s", loaded.title, failure.message)
    return len(inputs) / max(seconds, 1e-9)


def _timed(loaded: LoadedModel, inputs: Sequence[Json], monitor: RunMonitor) -> tuple[float, list[Outcome]]:
    begun = time.perf_counter()
    outcomes = loaded.runner.run(inputs, {}, monitor)
    return time.perf_counter() - begun, outcomes
