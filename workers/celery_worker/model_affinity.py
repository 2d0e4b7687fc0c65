"""Model-affinity scheduling: which jobs a worker leaves to others because it has not loaded their model.

A device that cannot hold all requested models keeps the one that it loaded last while there is work for it, for at most
`DWELL_LOADS` times the duration of a load. A job is offered first to a worker that has loaded its model. Both rules
are limited in time, so that no job waits forever.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from common.jobs import JobSpec
from common.queue.heartbeats import Heartbeat, serving
from common.records import Json
from common.tasks import ALIASES
from workers.device.protocol import DeviceStatus

#: How long a crowded device keeps its models while jobs wait for others: so many times the seconds a load takes.
DWELL_LOADS = 10.0
#: The limits of that time.
MIN_DWELL_SECONDS, MAX_DWELL_SECONDS = 2.0, 120.0
#: For so many dwells a busy, crowded worker leaves a model to another worker that holds it.
REMOTE_DWELL_FACTOR = 4
#: Seconds for which any other worker leaves a job to one that holds its model: no load is needed if it is done by then.
DEFER_SECONDS = 2.0
#: Seconds after an eviction for which a device counts as crowded; later one load finds out again.
_CROWDED_SECONDS = 900.0
#: Seconds without a chunk after which the loaded models have no work.
_IDLE_SECONDS = 0.8

#: Task and model, as heartbeats name them.
Model = tuple[str, str]


class ModelAffinity:
    """One worker's preferences among jobs, by their models. Any thread may ask.

    Args:
        worker: its name.
        status: returns what its device holds.
        live_workers: returns all live workers.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        worker: str,
        status: Callable[[], DeviceStatus],
        live_workers: Callable[[], Sequence[Heartbeat]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._status = status
        self._live_workers = live_workers
        self._clock = clock
        self._lock = threading.Lock()
        self._running: Counter[Model] = Counter()
        self._target: Model | None = None  #: the model it switched to last
        self._target_since = float("-inf")
        self._last_finished = float("-inf")
        self._waiting_since: dict[str, float] = {}
        self._evicted = 0
        self._crowded_until = float("-inf")

    def should_run(self, spec: JobSpec) -> bool:
        """Return whether a chunk of the job may run here now; if not, its ticket is to be requeued."""
        model = _model_of(spec)
        if model is None:
            return True
        status, now = self._status(), self._clock()
        elsewhere = any(
            worker.name != self._worker and worker.state == "ready" and model in _models(worker.models)
            for worker in serving(self._live_workers(), spec.queue)
        )
        with self._lock:
            if status.evicted > self._evicted:
                self._crowded_until = now + _CROWDED_SECONDS
            self._evicted = status.evicted
            if not self._is_current(model, status, now):
                if not self._may_switch(spec.id, status, elsewhere, now):
                    return False
                self._target, self._target_since = model, now
            self._waiting_since.pop(spec.id, None)
            return True

    @contextlib.contextmanager
    def running(self, spec: JobSpec) -> Iterator[None]:
        """Note that a chunk of the job is being processed as long as the block runs."""
        model = _model_of(spec)
        if model is None:
            yield
            return
        with self._lock:
            self._running[model] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= Counter([model])
                self._last_finished = self._clock()

    def _is_current(self, model: Model, status: DeviceStatus, now: float) -> bool:
        """Whether the model is loaded or to be loaded, and not about to be evicted for another one."""
        loaded = _models(status.models)
        if now >= self._crowded_until:
            return model in loaded or model in self._running
        return model == self._target or (model in loaded and (self._target is None or self._target in loaded))

    def _may_switch(self, job_id: str, status: DeviceStatus, elsewhere: bool, now: float) -> bool:
        """Whether to load a further model, for which others may be evicted."""
        self._waiting_since = {
            job: t for job, t in self._waiting_since.items() if now - t < 2 * REMOTE_DWELL_FACTOR * MAX_DWELL_SECONDS
        }
        waited = now - self._waiting_since.setdefault(job_id, now)
        if waited >= REMOTE_DWELL_FACTOR * MAX_DWELL_SECONDS:
            return True
        busy = bool(self._running) or now - self._last_finished < _IDLE_SECONDS
        if not busy or now >= self._crowded_until:
            return not elsewhere or waited >= DEFER_SECONDS
        if self._target is not None and self._target not in _models(status.models):
            return False  # the previous switch has not been completed
        dwell = min(max(DWELL_LOADS * status.load_seconds, MIN_DWELL_SECONDS), MAX_DWELL_SECONDS)
        kept = now - max(self._target_since, status.changed_at)
        return kept >= dwell and not (elsewhere and waited < REMOTE_DWELL_FACTOR * dwell)


def _model_of(spec: JobSpec) -> Model | None:
    """Return the model that a job loads; None if it loads none, or not in the device process."""
    if spec.model is None or spec.training is not None:
        return None
    return ALIASES.get(spec.task, spec.task), spec.model


def _models(summaries: Sequence[Mapping[str, Json]]) -> set[Model]:
    return {(str(summary.get("task")), str(summary.get("model"))) for summary in summaries}
