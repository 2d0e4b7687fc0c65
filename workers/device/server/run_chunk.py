"""One chunk through one runner: what must not be run is not, and what comes back is checked.

A runner is trusted to compute, not to be free of faults: one that raises is run record by record, so that the
record at fault fails alone; one that gives too few outcomes, or outcomes that cannot be written, is found out here.
Knows neither models nor the other process.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from common.errors import Cancelled, ModelError, PayloadError, RecordError, WorkerError
from common.payloads.codec import count, encode_outcomes
from common.records import Counts, Failure, FileInput, Json, Outcome, Record
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.runner import PreparingRunner, RemappedMonitor, RunMonitor, Runner

logger = logging.getLogger(__name__)

#: What Arrow and the encoder raise over an output that is not what its runner declared.
_WRITE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, MemoryError, pa.ArrowException)


class DeviceLost(Exception):
    """Raised when the device's context is ruined: only a fresh process can use it again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a chunk: the payload of outcomes, their counts, and the seconds it took to compute them."""

    payload: bytes
    counts: Counts
    seconds: float


@dataclass(frozen=True, slots=True)
class ChunkInputs:
    """What a runner is given of a chunk: equal records once."""

    values: Sequence[Json]
    places: Sequence[Sequence[int]]  #: for each value, the positions of its records in the chunk
    prepared: Any = None  #: what the runner made of them beforehand


@dataclass(frozen=True, slots=True)
class Computed:
    """What came of a chunk, not yet encoded."""

    positions: Sequence[int]
    ids: Sequence[Json]
    outcomes: list[Outcome]
    output_type: pa.DataType | None
    seconds: float  #: of computing

    def encode(self) -> Answer:
        """Return it as it travels. Outputs that are not what the runner declared fail their records."""
        payload, outcomes = _encode(self.positions, self.ids, self.outcomes, self.output_type)
        return Answer(payload, count(outcomes), self.seconds)


def prepare_chunk(runner: Runner, records: Mapping[int, Record], params: Mapping[str, Json]) -> ChunkInputs:
    """Return the inputs of a chunk, and what its runner can do beforehand; any thread may call this."""
    inputs = _gather(runner, records, params)
    if not inputs.values or not isinstance(runner, PreparingRunner):
        return inputs
    return replace(inputs, prepared=runner.prepare(inputs.values, params))


def run_chunk(
    runner: Runner,
    records: Mapping[int, Record],
    params: Mapping[str, Json],
    device: str,
    monitor: RunMonitor,
    inputs: ChunkInputs | None = None,
) -> Computed:
    """Return the outcomes of `records` (by their position in the chunk), in the order given.

    Args:
        runner: what computes them.
        records: of which those that failed already are not run.
        params: the job's, without those that the runner was loaded with.
        device: where it computes, to be asked after a failure.
        watch: told before each batch.
        inputs: what `prepare_chunk` gave for the same runner, records and parameters.

    Raises:
        Cancelled: the chunk was given up.
        ModelError: the runner cannot do the job at all.
        DeviceLost: the device reported an error that ruins its context.
    """
    begun = time.perf_counter()
    outcomes = {p: Outcome(failure=r.failure) for p, r in records.items() if r.failure is not None}
    inputs = inputs or _gather(runner, records, params)
    if inputs.values:
        found = _run(runner, inputs, params, RemappedMonitor(monitor, inputs.places), device)
        for places, outcome in zip(inputs.places, found, strict=True):
            outcomes |= dict.fromkeys(places, outcome)
    seconds = time.perf_counter() - begun
    ids = [record.id for record in records.values()]
    return Computed(list(records), ids, [outcomes[p] for p in records], runner.output_type(params), seconds)


def _gather(runner: Runner, records: Mapping[int, Record], params: Mapping[str, Json]) -> ChunkInputs:
    """Return equal inputs once, where the runner gives them equal outcomes."""
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
    """Return what is equal for equal inputs, and can be looked up."""
    if isinstance(value, FileInput):
        return (json.dumps(value.input), value.blob)
    return value if isinstance(value, str) else (json.dumps(value),)


def _run(
    runner: Runner, inputs: ChunkInputs, params: Mapping[str, Json], monitor: RunMonitor, device: str
) -> list[Outcome]:
    values = inputs.values
    monitor.batch(range(len(values)))  # until the runner says which ones: it may die while it prepares them
    try:
        outcomes = _validated(_call(runner, inputs, params, monitor), len(values))
    except (Cancelled, ModelError, WorkerError):
        raise
    except Exception as error:  # a boundary: whatever a runner raises, the other records go on
        if is_device_lost(error):
            raise DeviceLost(str(error)) from error
        logger.exception("the runner %s raised; its records are run one by one", type(runner).__name__)
        outcomes = None
    if outcomes is None:
        outcomes = [_run_single(runner, values, number, params, monitor) for number in range(len(values))]
    _check_device(device, outcomes)
    return outcomes


def _call(runner: Runner, inputs: ChunkInputs, params: Mapping[str, Json], monitor: RunMonitor) -> object:
    if inputs.prepared is not None and isinstance(runner, PreparingRunner):
        return runner.run_prepared(inputs.prepared, monitor)
    return runner.run(inputs.values, params, monitor)


def _run_single(
    runner: Runner, inputs: Sequence[Json], number: int, params: Mapping[str, Json], monitor: RunMonitor
) -> Outcome:
    monitor.batch([number])
    alone = RemappedMonitor(monitor, [[number]])
    try:
        return _validated(runner.run([inputs[number]], params, alone), 1)[0]
    except (Cancelled, ModelError, WorkerError):
        raise
    except Exception as error:  # the same boundary, for one record
        if is_device_lost(error):
            raise DeviceLost(str(error)) from error
        if is_out_of_memory(error):
            return Outcome(failure=Failure("out_of_memory", "This record alone does not fit into memory."))
        if isinstance(error, RecordError):
            return Outcome(failure=Failure(error.code, error.message))
        logger.warning("the runner %s raised over one record: %s", type(runner).__name__, type(error).__name__)
        return Outcome(failure=Failure("runner_error", f"{type(error).__name__}: {error}"[:2000]))


def _validated(outcomes: object, expected: int) -> list[Outcome]:
    if not isinstance(outcomes, list) or not all(isinstance(outcome, Outcome) for outcome in outcomes):
        return [_runner_fault(f"it gave {type(outcomes).__name__}, expected a list of Outcome")] * expected
    if len(outcomes) != expected:
        return [_runner_fault(f"it gave {len(outcomes)} outcomes for {expected} records")] * expected
    return outcomes


def _runner_fault(what: str) -> Outcome:
    return Outcome(failure=Failure("runner_error", f"The runner is at fault: {what}."))


def _check_device(device: str, outcomes: Sequence[Outcome]) -> None:
    """Ask the device after a failure whether it still works: a runner may have taken its last word for a record's."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return
    if any(outcome.failure and outcome.failure.code == "runner_error" for outcome in outcomes):
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLost(str(error)) from error


def _encode(
    positions: Sequence[int], ids: Sequence[Json], outcomes: list[Outcome], output_type: pa.DataType | None
) -> tuple[bytes, list[Outcome]]:
    payload = _try_encode(positions, ids, outcomes, output_type)
    if isinstance(payload, Exception) and not isinstance(payload, PayloadError):
        logger.warning("outputs that cannot be written: %s", payload)
        outcomes = [_replace_unwritable(outcome, output_type) for outcome in outcomes]
        payload = _try_encode(positions, ids, outcomes, output_type)
    if isinstance(payload, Exception):
        failure = Failure("output_too_large", str(payload))
        outcomes = [Outcome(failure=outcome.failure or failure) for outcome in outcomes]
        payload = encode_outcomes(positions, ids, outcomes, output_type)
    return payload, outcomes


def _replace_unwritable(outcome: Outcome, output_type: pa.DataType | None) -> Outcome:
    error = _try_encode([0], [0], [outcome], output_type)
    if not isinstance(error, Exception):
        return outcome
    return _runner_fault(f"an output that cannot be written ({type(error).__name__}: {str(error)[:500]})")


def _try_encode(
    positions: Sequence[int], ids: Sequence[Json], outcomes: Sequence[Outcome], output_type: pa.DataType | None
) -> bytes | Exception:
    try:
        return encode_outcomes(positions, ids, outcomes, output_type)
    except (PayloadError, *_WRITE_ERRORS) as error:
        return error
