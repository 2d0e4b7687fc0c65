"""The `Runner` interface: a loaded model that turns inputs into one outcome each, in the same order.

Other distributions implement it too (the entry points of `common.tasks.RUNNER_ENTRY_POINTS`). The device process
checks what a runner returns. A runner fails one record by returning an `Outcome` with a failure, and the whole job by
raising `common.errors.ModelError`; any other exception counts as a bug of the runner.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from common.records import Json, Outcome
from common.task_params import LOAD_PARAMS
from workers.inference.core.token_budget import TokenBudget
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


class RunMonitor(Protocol):
    """Progress of a run; both methods raise `Cancelled` once the chunk is cancelled."""

    def batch(self, positions: Sequence[int]) -> None:
        """Note which inputs are about to run: if the process dies now, these are the suspects."""

    def tick(self) -> None:
        """Note progress within a long batch (each token of a generation)."""


class RemappedMonitor:
    """A monitor that translates the positions of a smaller run into those of a larger one."""

    def __init__(self, monitor: RunMonitor, targets: Sequence[Sequence[int]]) -> None:
        """Report to `monitor`, each position as those that `targets` has for it."""
        self._monitor = monitor
        self._targets = targets

    def batch(self, positions: Sequence[int]) -> None:
        """Note which inputs of the larger run are about to run."""
        self._monitor.batch(sorted(target for position in positions for target in self._targets[position]))

    def tick(self) -> None:
        """Note progress."""
        self._monitor.tick()


class NullMonitor:
    """A monitor for trial runs, which belong to no chunk."""

    def batch(self, positions: Sequence[int]) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Do nothing."""


class Runner(ABC):
    """A loaded model, and the code that turns inputs into outcomes."""

    #: False for a runner that works without a model; then `model` is None.
    needs_model: ClassVar[bool] = True
    #: How much its batches hold, for a runner that measures that.
    budget: TokenBudget | None = None
    #: Seconds that `run` has spent so far on preparing inputs, for a runner that does so apart from the rest.
    prepare_seconds: float = 0.0
    #: Parameters (of `-p`) that decide how the model is loaded, not how it runs.
    load_params: ClassVar[frozenset[str]] = frozenset(LOAD_PARAMS)

    @abstractmethod
    def __init__(self, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        """Load `model`, a directory, for `task` onto `device` (`cpu`, `cuda:0`).

        Raises:
            ModelError: it cannot be loaded, or cannot do the task.
        """

    @classmethod
    def load(cls, task: str, model: Path | None, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> "Runner":
        """Return a loaded runner: one of this class, or of another that suits the model's files.

        Raises:
            CodedError: as `__init__`; `missing_library`, the model needs a library that is not installed.
        """
        return cls(task, model, device, options)

    def output_type(self, params: Mapping[str, Json]) -> Any:
        """Return the Arrow type of an output; None for that which the task declares, and JSON text where none does."""
        return None

    @abstractmethod
    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return one outcome for each input, in order.

        Args:
            inputs: texts, or objects with the task's fields (`common.tasks`); untrusted.
            params: the job's `-p` options without those in `load_params`; untrusted.
            monitor: notified before every batch.

        Raises:
            ModelError: `bad_param`, a parameter that the task does not have or of a wrong value.
        """

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        """Return whether equal inputs get equal outcomes, so that a chunk need run them only once.

        Raises:
            ModelError: `bad_param`, as `run`.
        """
        return False

    def has_adapter(self, directory: str) -> bool:
        """Return whether its model was loaded with the adapter in a directory; "" for none."""
        return not directory

    def refusal(self, params: Mapping[str, Json]) -> str | None:
        """Return which of these parameters only a runner without an engine can follow; None if this one follows all.

        Raises:
            ModelError: as `run`.
        """
        return None

    @property
    def broken(self) -> bool:
        """Whether it can run nothing more, and must be loaded again."""
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Free what is not freed with the last reference; nothing runs meanwhile, or afterwards."""

    def memory_bytes(self) -> int:
        """Return about how much device memory the model holds, in bytes."""
        return 0

    def run_info(self) -> dict[str, Json]:
        """Return what is recorded about how it runs: dtype, attention implementation."""
        return {}


class PreparingRunner(Runner):
    """A runner that can prepare a chunk, such as by tokenizing it, while the device computes another."""

    @abstractmethod
    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> Any:
        """Return what `run_prepared` takes; may be called by any thread, while another one is in `run_prepared`.

        Raises:
            ModelError: as `run`.
        """

    @abstractmethod
    def run_prepared(self, prepared: Any, monitor: RunMonitor) -> list[Outcome]:
        """Return what `run` does, from what `prepare` returned."""

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return one outcome for each input, in order."""
        return self.run_prepared(self.timed_prepare(inputs, params), monitor)

    def timed_prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> Any:
        """Return what `prepare` does, and count its time in `prepare_seconds`."""
        begun = time.perf_counter()
        try:
            return self.prepare(inputs, params)
        finally:
            self.prepare_seconds += time.perf_counter() - begun
