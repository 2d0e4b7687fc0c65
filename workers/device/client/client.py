"""The device process as the turns of a worker use it: several threads ask it for the outcomes of their chunks.

Never imports torch or transformers. A death costs as little as can be: the requests that were merely waiting go to
the next process unchanged, the one that was running goes through `workers.device.client.isolation`.
"""

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import Cancelled, HugqueueError, PayloadError, WorkerError
from common.jobs import JobSpec
from common.payloads.codec import count, decode_records, encode_outcomes, output_type, overlay
from common.records import Counts, Failure, Json
from common.settings import Settings
from workers.celery_worker.model_affinity import DeviceStatus
from workers.device.client.batch_size_cache import BatchSizeCache
from workers.device.client.isolation import Isolation
from workers.device.client.process import DeviceProcess, PendingRequest, ProcessExit, error_of
from workers.device.client.respawner import (
    MAX_LOADING_DEATHS,
    MAX_UNEXPLAINED_DEATHS,
    POLL_SECONDS,
    DeviceRespawner,
    fatal_load_error,
)
from workers.device.protocol import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChunkResult:
    """What came of a chunk."""

    payload: bytes  #: of outcomes (`common.payloads.codec`)
    counts: Counts
    seconds: float  #: of computing, in the device process
    run_info: Mapping[str, Json]  #: what ran: model, commit, device, dtype, versions
    settle: Callable[[bool], None] | None = None  #: to be told whether the commit counted


@dataclass(frozen=True, slots=True)
class IsolationPolicy:
    """What is known of a chunk over which whole workers died."""

    excluded: Mapping[int, Failure]  #: records that are not to be run again, and why
    on_alone: Callable[[int], None]  #: told the position of a record that is about to run alone


@dataclass(frozen=True, slots=True)
class _Request:
    """One call of `run`."""

    spec: JobSpec
    payload: bytes
    cancelled: threading.Event
    on_stage: Callable[[str], None]
    on_alone: Callable[[int], None]


class DeviceClient:
    """The device process of a worker, whichever it is at the moment.

    Args:
        settings: its device (`cpu` or `cuda:0`; which GPU that is, `CUDA_VISIBLE_DEVICES` says), its preloads, its
            limits, and which models jobs may name.
        budgets: how much batches hold, as earlier processes learnt it; None keeps nothing.
        prefetch: as `DeviceRespawner` takes it.
    """

    def __init__(
        self, settings: Settings, budgets: BatchSizeCache | None = None, *, prefetch: bool | None = None
    ) -> None:
        self._respawner = DeviceRespawner(settings, budgets, prefetch=prefetch)
        self._batch_sizes = budgets
        self._ids = itertools.count(1)

    def start(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Start the process and wait until the preloads are loaded and warm, or until `given_up` is true.

        Raises:
            Cancelled: it was given up.
            ModelError: a preload cannot be had, or cannot be loaded.
            WorkerError: the process cannot be started, or a preload does not fit.
        """
        self._respawner.start()
        self._respawner.ready(given_up)

    def stop(self) -> None:
        """End the process at once; calls of `run` raise `Cancelled`."""
        self._respawner.stop()

    @property
    def broken(self) -> HugqueueError | None:
        """Why no process can be kept alive any longer: the worker is of no use then."""
        return self._respawner.broken

    @property
    def pid(self) -> int | None:
        """The id of the process now alive, None between two."""
        child = self._respawner.now()
        return child.pid if child else None

    @property
    def loaded(self) -> list[dict[str, Json]]:
        """The loaded models: task, model and bytes of memory each."""
        child = self._respawner.now()
        return list(child.status["models"]) if child else []

    @property
    def holding(self) -> DeviceStatus:
        """What the process holds, and how its models came and went."""
        child = self._respawner.now()
        if child is None or "since" not in child.status:  # it has loaded nothing yet
            return DeviceStatus()
        return DeviceStatus(*(child.status[name] for name in ("models", "evicted", "load_seconds", "since")))

    @property
    def memory(self) -> dict[str, int | None]:
        """Free and total memory of the device in bytes, when the models last changed; None if nobody can tell."""
        child = self._respawner.now()
        return {name: child.status[name] if child else None for name in ("free", "total")}

    def run(
        self,
        spec: JobSpec,
        payload: bytes,
        positions: Sequence[int] | None,
        *,
        cancelled: threading.Event,
        on_stage: Callable[[str], None],
        caution: IsolationPolicy | None = None,
    ) -> ChunkResult:
        """Return the outcomes of a chunk's records; any thread may call this.

        Args:
            spec: the job.
            payload: the chunk's records.
            positions: of the records to run; None runs all.
            cancelled: set it to give the chunk up, between two batches.
            on_stage: told what takes time before anything runs ("loading ..."), and "" when that is over.
            caution: run each record by itself: whole workers died over this chunk.

        Raises:
            Cancelled: it was given up, or the process was stopped.
            ModelError: the job cannot be done.
            WorkerError: this worker cannot do it now.
            PayloadError: the payload is none.
        """
        on_alone = caution.on_alone if caution else lambda _: None
        request = _Request(spec, payload, cancelled, on_stage, on_alone)
        process_exit: ProcessExit | None = None
        if not caution:
            answer = self._attempt(request, positions)
            if isinstance(answer, ChunkResult):
                return answer
            process_exit = answer
        every = list(positions) if positions is not None else list(range(len(decode_records(payload))))
        plan = Isolation(every, serial=bool(caution), excluded=caution.excluded if caution else {})
        if process_exit is not None:
            self._record_exit(request, plan, process_exit)
        return self._isolate(request, plan)

    def _isolate(self, request: _Request, plan: Isolation) -> ChunkResult:
        results: list[ChunkResult] = []
        while wanted := plan.next():
            if len(wanted) == 1:
                request.on_alone(wanted[0])
            answer = self._attempt(request, wanted)
            if isinstance(answer, ChunkResult):
                results.append(answer)
                plan.done(wanted)
            else:
                self._record_exit(request, plan, answer)
        if plan.failures or not results:
            results.append(self._write_failures(request, plan.failures))
        return _merged(results)

    def _record_exit(self, request: _Request, plan: Isolation, process_exit: ProcessExit) -> None:
        logger.warning(
            "job %s, suspects %s: %s",
            request.spec.id,
            list(process_exit.suspects) or "unknown",
            process_exit.failure.message,
        )
        plan.died(process_exit.suspects, process_exit.failure)

    def _write_failures(self, request: _Request, failures: Mapping[int, Failure]) -> ChunkResult:
        """Have the process write the failures: its runner knows the type of the outputs that are not there."""
        answer = self._attempt(request, [], failures)
        if isinstance(answer, ProcessExit):
            raise WorkerError("device_fault", f"The failures could not be written: {answer.failure.message}")
        return answer

    def _attempt(
        self, request: _Request, positions: Sequence[int] | None, failures: Mapping[int, Failure] | None = None
    ) -> ChunkResult | ProcessExit:
        """Have some records run by whatever process there is; a death that was not theirs is nothing to them."""
        body: dict[str, Json] = {
            "spec": request.spec.encode(),
            "positions": list(positions) if positions is not None else None,
            "failures": {str(at): [why.code, why.message] for at, why in (failures or {}).items()},
        }
        unexplained = loading = 0
        while True:
            child = self._respawner.ready(request.cancelled.is_set)
            message = Message("run", next(self._ids), body, request.payload)
            answer = self._await(child, child.send_request(message, request.spec.id), request)
            if isinstance(answer, Message):
                if self._batch_sizes and answer.kind == "result":
                    self._batch_sizes.learn(answer.body["budgets"])
                return _result(answer)
            if answer.blamed and not answer.loading:
                return answer
            loading += answer.loading
            unexplained += answer.idle
            if loading >= MAX_LOADING_DEATHS or (
                answer.loading and answer.stuck
            ):  # another such wait would help nobody
                raise fatal_load_error(request.spec.model or request.spec.task, answer)
            if unexplained >= MAX_UNEXPLAINED_DEATHS:
                raise WorkerError("device_process_dies", f"The device process keeps dying: {answer.failure.message}")

    def _await(self, child: DeviceProcess, pending: PendingRequest, request: _Request) -> Message | ProcessExit:
        """Return the answer or the process's death; stages are passed on, from this thread."""
        cancel_sent = False
        while True:
            if not cancel_sent and (request.cancelled.is_set() or self._respawner.stopping):
                child.cancel(pending.id)
                cancel_sent = True
            try:
                event = pending.events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(event, Message) and event.kind == "stage":
                request.on_stage(event.body["text"])
                continue
            if cancel_sent and isinstance(event, ProcessExit):
                raise Cancelled
            return event


def _result(message: Message) -> ChunkResult:
    if message.kind == "cancelled":
        raise Cancelled
    if message.kind == "failed":
        if message.body["error"] == "payload":
            raise PayloadError(message.body["message"])
        raise error_of(message)
    body = message.body
    return ChunkResult(message.payload, Counts(*body["counts"]), body["seconds"], body["facts"])


def _merged(results: Sequence[ChunkResult]) -> ChunkResult:
    """Return results of parts of a chunk as one, in the order of the records."""
    if len(results) == 1:
        return results[0]
    payloads = [result.payload for result in results]
    found = overlay(payloads)
    positions = sorted(found)
    ids, outcomes = zip(*(found[position] for position in positions), strict=True)
    payload = encode_outcomes(positions, ids, outcomes, output_type(payloads[0]))
    return ChunkResult(payload, count(outcomes), sum(result.seconds for result in results), results[-1].run_info)
