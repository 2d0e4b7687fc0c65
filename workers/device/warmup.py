"""Warming up: a few sample records per task through a freshly loaded runner, before the first job needs it.

The first forward pass of a process is the slow one (kernels are chosen, buffers allocated); it also shows at start,
not in a job, that a model cannot do its task.
"""

import logging
import time
from collections.abc import Sequence

from common.errors import ModelError
from common.tasks import find_task
from common.values import Json, Outcome
from workers.device.models import Loaded
from workers.runners.base import Watch

logger = logging.getLogger(__name__)

_TEXTS = (
    "A short text.",
    "Water boils at a hundred degrees, unless it is heated high up on a mountain.",
    "The old library stands beside the river. It opens at nine, closes at six, and keeps two thousand maps.",
)
_SAMPLES: dict[str, tuple[Json, ...]] = {
    "fill-mask": tuple(f"{text} It is [MASK]." for text in _TEXTS),
    "zero-shot-classification": tuple({"text": text, "candidate_labels": ["science", "travel"]} for text in _TEXTS),
    "question-answering": tuple({"question": "When does it open?", "context": text} for text in _TEXTS),
    "table-question-answering": (
        {"table": {"name": ["map", "book"], "number": ["2000", "7"]}, "query": "How many maps are there?"},
    ),
}
#: Records in the measured run: enough for batches, few enough for a second or so on a CPU.
_MEASURED = 24
#: A first run that took longer, in seconds, is measure enough: text generation on a CPU takes its time.
_PATIENCE = 2.0


def samples(task: str) -> Sequence[Json]:
    """Return inputs that a runner of `task` can take."""
    return _SAMPLES.get(find_task(task).name, _TEXTS)


def warm_up(loaded: Loaded, watch: Watch) -> float | None:
    """Run the samples of the runner's task; return its speed in records per second, or None if unknown.

    Raises:
        ModelError: the model cannot do its task.
    """
    inputs = samples(loaded.task)
    try:
        seconds, outcomes = _timed(loaded, inputs, watch)
        if seconds < _PATIENCE:  # the first run pays for what it warms: measure another
            inputs = [inputs[number % len(inputs)] for number in range(_MEASURED)]
            seconds, outcomes = _timed(loaded, inputs, watch)
    except ModelError as error:
        if error.code != "bad_param":  # a runner that wants parameters gets them with its job
            raise
        logger.warning("%s was not warmed up: %s", loaded.title, error)
        return None
    failure = next((outcome.failure for outcome in outcomes if outcome.failure), None)
    if failure:
        logger.warning("warming up %s: a sample failed: %s", loaded.title, failure.message)
    return len(inputs) / max(seconds, 1e-9)


def _timed(loaded: Loaded, inputs: Sequence[Json], watch: Watch) -> tuple[float, list[Outcome]]:
    begun = time.perf_counter()
    outcomes = loaded.runner.run(inputs, {}, watch)
    return time.perf_counter() - begun, outcomes
