"""Which jobs a worker leaves to others for a while, or to itself for later: those whose model it does not hold.

Turns go round between jobs, chunk by chunk; models that do not fit together on one device must not. A device that had
to let a model go for another one lately is *crowded*: its models then take turns of a longer kind, of about ten times
what a load takes. And a job goes first to a worker that has its model. Both are preferences with an end: no job waits
for ever.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.jobs import JobSpec
from common.queue.heartbeats import Heartbeat, serving
from common.records import Json
from common.tasks import ALIASES

#: How long a crowded device keeps its models while others are asked for: so many times a load, within these seconds.
DWELL, LEAST_DWELL, MOST_DWELL = 10.0, 2.0, 120.0
#: Seconds after a model had to go for which a device counts as crowded; later it is found out anew, by one load.
CROWDED_SECONDS = 900.0
#: Seconds for which an uncrowded worker leaves a model to another one that has it: what is over by then needs no load.
PATIENCE = 2.0
#: How many times its own dwell a crowded worker leaves a model to another one that has it.
LOYALTY = 4
#: Seconds for which any job may be left waiting, whatever else.
_MAX_WAIT = LOYALTY * MOST_DWELL
#: Seconds without a turn after which the models here have nothing to do.
_IDLE_SECONDS = 0.8
#: Seconds after which a job whose tickets come by no more is not waited for.
_FORGET_SECONDS = 10.0

#: Task and model, as heartbeats name them.
Model = tuple[str, str]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What a device process holds."""

    models: Sequence[Mapping[str, Json]] = ()  #: task, model and bytes of each
    evicted: int = 0  #: how many models had to go for others since the process started
    load_seconds: float = 0.0  #: what the last load took
    since: float = 0.0  #: when models last came or went, by the monotonic clock


@dataclass(slots=True)
class _Wait:
    """A job whose tickets come by and are passed on."""

    first: float
    last: float


class Affinity:
    """One worker's preferences among jobs, by the models they want; any thread may ask.

    Args:
        name: of the worker.
        look: gives what its device process holds.
        peers: gives all live workers.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        name: str,
        look: Callable[[], DeviceStatus],
        peers: Callable[[], Sequence[Heartbeat]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._look = look
        self._peers = peers
        self._clock = clock
        self._lock = threading.Lock()
        self._running: Counter[Model] = Counter()
        self._last_finished = float("-inf")  #: when a turn last ended
        self._waits: dict[str, _Wait] = {}
        self._evicted = 0
        self._crowded_until = float("-inf")

    def should_run(self, spec: JobSpec) -> bool:
        """Return whether a turn at the job may be taken here now; if not, its ticket is to be passed on."""
        model = _model_of(spec)
        if model is None:
            return True
        holding, now = self._look(), self._clock()
        elsewhere = any(
            peer.name != self._name and peer.state == "ready" and model in _models(peer.models)
            for peer in serving(self._peers(), spec.queue)
        )
        with self._lock:
            self._update_crowded(holding, now)
            admitted = self._should_run(spec.id, model, holding, elsewhere, now)
            if admitted:
                self._waits.pop(spec.id, None)
        return admitted

    @contextlib.contextmanager
    def at(self, spec: JobSpec) -> Iterator[None]:
        """Note that a turn at the job is in hand as long as the block runs."""
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

    def _update_crowded(self, holding: DeviceStatus, now: float) -> None:
        if holding.evicted > self._evicted:
            self._crowded_until = now + CROWDED_SECONDS
        self._evicted = holding.evicted

    def _should_run(self, job_id: str, model: Model, holding: DeviceStatus, elsewhere: bool, now: float) -> bool:
        crowded, held = now < self._crowded_until, _models(holding.models)
        coming = self._running.keys() - held  # taken on, not yet loaded: something here is about to go for it
        if model in coming or (model in held and not (crowded and coming)):
            return True
        wait = self._wait(job_id, now)
        if now - wait.first >= _MAX_WAIT:
            return True
        if crowded and coming:
            return False
        if crowded and (self._running or now - self._last_finished < _IDLE_SECONDS):
            return self._has_dwelt(holding, elsewhere, now) and wait.first == min(w.first for w in self._waits.values())
        return not elsewhere or now - wait.first >= PATIENCE

    @staticmethod
    def _has_dwelt(holding: DeviceStatus, elsewhere: bool, now: float) -> bool:
        """Whether the models of a crowded device have had their turn, before one that may be `elsewhere`."""
        dwell = min(max(DWELL * holding.load_seconds, LEAST_DWELL), MOST_DWELL)
        return now - holding.since >= dwell * (LOYALTY if elsewhere else 1)

    def _wait(self, job_id: str, now: float) -> _Wait:
        """Return since when the job waits, and note that it still does."""
        self._waits = {name: wait for name, wait in self._waits.items() if now - wait.last < _FORGET_SECONDS}
        wait = self._waits.setdefault(job_id, _Wait(now, now))
        wait.last = now
        return wait


def _model_of(spec: JobSpec) -> Model | None:
    """Return the model that a job loads; None where it loads none, or not in the device process."""
    if spec.model is None or spec.training is not None:
        return None
    return ALIASES.get(spec.task, spec.task), spec.model


def _models(summaries: Sequence[Mapping[str, Json]]) -> set[Model]:
    return {(str(summary.get("task")), str(summary.get("model"))) for summary in summaries}
