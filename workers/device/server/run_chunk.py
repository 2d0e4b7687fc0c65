"""Running one chunk: failed records are skipped, records over which the runner raises are isolated, outcomes checked.

Runners may have bugs. One that raises is run again record by record, so that only the record at fault fails; one that
returns too few outcomes is detected here, outputs of another type than declared in
`workers.device.server.encode_chunk`.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import Cancelled, ModelError, RecordError, WorkerError
from common.records import Failure, FileInput, Json, Outcome, Record
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.runner import PreparingRunner, RemappedMonitor, RunMonitor, Runner

logger = logging.getLogger(__name__)


class DeviceLost(Exception):
    """Raised when the device's context is ruined: only a fresh process can use it again."""


@dataclass(frozen=True, slots=True)
class ChunkInputs:
    """The inputs of a chunk for its runner, equal ones once."""

    values: Sequence[Json]
    positions: Sequence[Sequence[int]]  #: of the records in the chunk, for each value
    prepared: Any = None  #: what `PreparingRunner.prepare` returned
    prepare_seconds: float = 0.0  #: that it took


def prepare_chunk(runner: Runner, records: Mapping[int, Record], params: Mapping[str, Json]) -> ChunkInputs:
    """Return the inputs of a chunk, prepared as far as its runner can without the device. Any thread may call this."""
    inputs = _gather(runner, records, params)
    if not inputs.values or not isinstance(runner, PreparingRunner):
        return inputs
    begun = time.perf_counter()
    prepared = runner.prepare(inputs.values, params)
    return replace(inputs, prepared=prepared, prepare_seconds=time.perf_counter() - begun)


def run_chunk(
    runner: Runner,
    records: Mapping[int, Record],
    params: Mapping[str, Json],
    device: str,
    monitor: RunMonitor,
    inputs: ChunkInputs | None = None,
) -> list[Outcome]:
    """Return the outcomes of `records` (by position in the chunk), in their order.

    Args:
        runner: computes them.
        records: those that failed already are not run.
        params: of the job, without those the runner was loaded with.
        device: where it computes; checked after a failure.
        monitor: receives each batch before it runs.
        inputs: what `prepare_chunk` returned for the same runner, records and parameters.

    Raises:
        Cancelled: the chunk was cancelled.
        ModelError: the runner cannot do the job at all.
        DeviceLost: the device reported an error that ruins its context.
    """
    outcomes = {p: Outcome(failure=r.failure) for p, r in records.items() if r.failure is not None}
    inputs = inputs or _gather(runner, records, params)
    if inputs.values:
        found = _run(runner, inputs, params, RemappedMonitor(monitor, inputs.positions), device)
        for positions, outcome in zip(inputs.positions, found, strict=True):
            outcomes |= dict.fromkeys(positions, outcome)
    return [outcomes[position] for position in records]


def _gather(runner: Runner, records: Mapping[int, Record], params: Mapping[str, Json]) -> ChunkInputs:
    """Return equal inputs once, if the runner gives them equal outcomes."""
    values = {p: _runner_input(record) for p, record in records.items() if record.failure is None}
    groups = _group_equal(values) if len(values) > 1 and runner.is_deterministic(params) else [[p] for p in values]
    return ChunkInputs([values[group[0]] for group in groups], groups)


def _group_equal(values: Mapping[int, Json]) -> list[list[int]]:
    groups: dict[Json, list[int]] = {}
    for position, value in values.items():
        groups.setdefault(_hashable(value), []).append(position)
    return list(groups.values())


def _runner_input(record: Record) -> Json:
    return record.input if record.blob is None else FileInput(record.input, record.blob)


def _hashable(value: Json) -> Json:
    if isinstance(value, FileInput):
        return (json.dumps(value.input), value.blob)
    return value if isinstance(value, str) else (json.dumps(value),)


def _run(
    runner: Runner, inputs: ChunkInputs, params: Mapping[str, Json], monitor: RunMonitor, device: str
) -> list[Outcome]:
    values = inputs.values
    monitor.batch(range(len(values)))  # until the runner reports batches of its own: it may crash while it prepares
    try:
        if inputs.prepared is not None and isinstance(runner, PreparingRunner):
            outcomes = runner.run_prepared(inputs.prepared, monitor)
        else:
            outcomes = runner.run(values, params, monitor)
        outcomes = _validated(outcomes, len(values))
    except (Cancelled, ModelError, WorkerError):
        raise
    except Exception as error:  # a boundary: whatever a runner raises, the other records still run
        if is_device_lost(error):
            raise DeviceLost(str(error)) from error
        logger.exception("%s raised; its records run isolated", type(runner).__name__)
        outcomes = [_run_single(runner, value, number, params, monitor) for number, value in enumerate(values)]
    _check_device(device, outcomes)
    return outcomes


def _run_single(runner: Runner, value: Json, number: int, params: Mapping[str, Json], monitor: RunMonitor) -> Outcome:
    monitor.batch([number])
    try:
        return _validated(runner.run([value], params, RemappedMonitor(monitor, [[number]])), 1)[0]
    except (Cancelled, ModelError, WorkerError):
        raise
    except Exception as error:  # the same boundary, for one record
        if is_device_lost(error):
            raise DeviceLost(str(error)) from error
        if is_out_of_memory(error):
            return Outcome(failure=Failure("out_of_memory", "This record does not fit into memory, even alone."))
        if isinstance(error, RecordError):
            return Outcome(failure=Failure(error.code, error.message))
        logger.warning("%s raised %s over one record", type(runner).__name__, type(error).__name__)
        return Outcome(failure=Failure.from_exception("runner_error", error))


def _validated(outcomes: object, expected: int) -> list[Outcome]:
    if not isinstance(outcomes, list) or not all(isinstance(outcome, Outcome) for outcome in outcomes):
        return [runner_fault(f"{type(outcomes).__name__}, expected a list of Outcome")] * expected
    if len(outcomes) != expected:
        return [runner_fault(f"{len(outcomes)} outcomes for {expected} records")] * expected
    return outcomes


def runner_fault(what: str) -> Outcome:
    """Return the failure of a record whose runner returned something else than an outcome of the right type."""
    return Outcome(failure=Failure("runner_error", f"The runner has a bug: it returned {what}."))


def _check_device(device: str, outcomes: Sequence[Outcome]) -> None:
    """Check after a failure that the device still works: a runner may have blamed a record for the device's error."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return
    if any(outcome.failure and outcome.failure.code == "runner_error" for outcome in outcomes):
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLost(str(error)) from error
