"""The client of the device process: threads of the Celery process run their chunks on it.

Never imports torch. A crash costs as little as possible: requests that were only waiting go to the next process
unchanged; the one that was running goes through `workers.device.client.isolation`.
"""

import itertools
import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from common.errors import Cancelled, HugqueueError, PayloadError, WorkerError
from common.jobs import JobSpec
from common.payloads.codec import count, decode_records, encode_outcomes, output_type, overlay
from common.records import Failure, Json, Outcome
from common.reporting import CancelToken, Reporter
from common.settings import Settings
from common.tasks import declared_output
from common.tracing import Span, current
from workers.device.client.isolation import Isolation
from workers.device.client.process import MAX_TRACED_BATCHES, DeviceProcess, PendingRequest, ProcessExit, error_of
from workers.device.client.respawner import (
    MAX_LOADING_DEATHS,
    MAX_UNEXPLAINED_DEATHS,
    POLL_SECONDS,
    DeviceRespawner,
    fatal_load_error,
)
from workers.device.client.token_budget_cache import TokenBudgetCache
from workers.device.protocol import Aborted, Answer, ChunkResult, DeviceStatus, Effort, Failed, Run, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IsolationPolicy:
    """How to run a chunk over which whole workers died: each record isolated."""

    excluded: Mapping[int, Failure]  #: records that must not run again, and why
    before_record: Callable[[int], None]  #: called with the position of a record that is about to run


@dataclass(slots=True)
class _ChunkRequest:
    """One call of `run`."""

    spec: JobSpec
    payload: bytes
    cancel_token: CancelToken
    reporter: Reporter
    before_record: Callable[[int], None]
    results: list[ChunkResult] = field(default_factory=list)


class DeviceClient:
    """Runs chunks on the worker's device process, whichever is alive.

    Args:
        settings: device (`cpu` or `cuda:0`; `CUDA_VISIBLE_DEVICES` says which GPU that is), preloads, limits, and
            which models jobs may name.
        batch_sizes: what earlier processes learned about the size of batches; None keeps nothing.
        prefetch: see `DeviceRespawner`.
    """

    def __init__(
        self, settings: Settings, batch_sizes: TokenBudgetCache | None = None, *, prefetch: bool | None = None
    ) -> None:
        self._respawner = DeviceRespawner(settings, batch_sizes, prefetch=prefetch)
        self._batch_sizes = batch_sizes
        self._ids = itertools.count(1)

    def start(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Start the process and wait until the preloads are loaded and warm, or until `stopped` returns True.

        Raises:
            Cancelled: it was stopped.
            ModelError: a preload is not available, or cannot be loaded.
            WorkerError: the process cannot be started, or a preload does not fit.
        """
        self._respawner.start()
        self._respawner.wait_ready(stopped)

    def stop(self) -> None:
        """Kill the process; calls of `run` raise `Cancelled`."""
        self._respawner.stop()

    @property
    def broken(self) -> HugqueueError | None:
        """Why no process can be kept alive any longer: the worker is of no use then."""
        return self._respawner.broken

    @property
    def pid(self) -> int | None:
        """The id of the process that takes requests, None while there is none."""
        process = self._respawner.current
        return process.pid if process else None

    @property
    def status(self) -> DeviceStatus:
        """What the device holds, as the process last reported."""
        process = self._respawner.current
        return process.status if process else DeviceStatus()

    @property
    def fallbacks(self) -> dict[str, int]:
        """How often each fast path fell back to a slower one, in all device processes so far."""
        return dict(self._respawner.past_fallbacks + Counter(self.status.fallbacks))

    def run(
        self,
        spec: JobSpec,
        payload: bytes,
        positions: Sequence[int] | None,
        *,
        cancel_token: CancelToken,
        reporter: Reporter,
        isolation: IsolationPolicy | None = None,
    ) -> ChunkResult:
        """Return the outcomes of a chunk's records. Any thread may call this.

        Args:
            spec: of the job.
            payload: the chunk's records.
            positions: of the records to run; None runs all.
            cancel_token: ends the work between two batches.
            reporter: receives the stages before records run ("loading ..."), and "" when they are over.
            isolation: runs each record isolated.

        Raises:
            Cancelled: it was cancelled, or the client was stopped.
            ModelError: the job cannot be done.
            WorkerError: this worker cannot do it now.
            PayloadError: the payload is broken.
        """
        chunk = _ChunkRequest(
            spec, payload, cancel_token, reporter, isolation.before_record if isolation else lambda _: None
        )
        process_exit = None
        if not isolation:
            answer = self._attempt(chunk, positions)
            if isinstance(answer, ChunkResult):
                return answer
            process_exit = answer
        records = decode_records(payload)
        chosen = list(positions) if positions is not None else list(range(len(records)))
        plan = Isolation(chosen, isolated=bool(isolation), excluded=isolation.excluded if isolation else {})
        if process_exit is not None:
            _record_exit(chunk, plan, process_exit)
        self._isolate(chunk, plan)
        if not chunk.results and _declared_type(spec) is None:  # all failed; only the runner knows the type
            answer = self._attempt(chunk, [])
            if isinstance(answer, ProcessExit):
                raise WorkerError("device_fault", f"The failures could not be written: {answer.failure.message}")
            chunk.results.append(answer)
        failures = {at: (records[at].id, Outcome(failure=failure)) for at, failure in plan.failures.items()}
        return _merged(chunk, failures)

    def _isolate(self, chunk: _ChunkRequest, plan: Isolation) -> None:
        while wanted := plan.next():
            if len(wanted) == 1:
                chunk.before_record(wanted[0])
            answer = self._attempt(chunk, wanted)
            if isinstance(answer, ChunkResult):
                chunk.results.append(answer)
                plan.done(wanted)
            else:
                _record_exit(chunk, plan, answer)

    def _attempt(self, chunk: _ChunkRequest, positions: Sequence[int] | None) -> ChunkResult | ProcessExit:
        """Run some records on whatever process is alive; an exit that they did not cause does not count."""
        wanted = list(positions) if positions is not None else None
        spec = replace(chunk.spec, notify=None).encode()  # that URL may hold a token
        unexplained = loading = 0
        traced = current()
        while True:
            process = self._respawner.wait_ready(lambda: chunk.cancel_token.is_cancelled)
            request = Run(next(self._ids), spec=spec, positions=wanted, payload=chunk.payload)
            pending = process.send_request(request, chunk.spec.id, traced=traced.recording)
            answer = self._await(process, pending, chunk)
            _trace_batches(traced, pending)
            if not isinstance(answer, ProcessExit):
                return self._result(answer)
            if answer.blamed and not answer.loading:
                return answer
            loading += answer.loading
            unexplained += answer.idle
            if loading >= MAX_LOADING_DEATHS or answer.stuck_loading:  # a second such wait is pointless
                raise fatal_load_error(chunk.spec.model or chunk.spec.task, answer)
            if unexplained >= MAX_UNEXPLAINED_DEATHS:
                raise WorkerError("device_process_dies", f"The device process keeps dying: {answer.failure.message}")

    def _await(self, process: DeviceProcess, pending: PendingRequest, chunk: _ChunkRequest) -> Answer | ProcessExit:
        """Return the answer or the process's exit; stages are reported from this thread."""
        cancel_sent = False
        while True:
            if not cancel_sent and (chunk.cancel_token.is_cancelled or self._respawner.stopping):
                process.cancel(pending.id)
                cancel_sent = True
            try:
                event = pending.events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            match event:
                case Stage():
                    chunk.reporter.stage(event.text)
                case ProcessExit() if cancel_sent:
                    raise Cancelled
                case _:
                    return event

    def _result(self, answer: Answer) -> ChunkResult:
        if isinstance(answer, Aborted):
            raise Cancelled
        if isinstance(answer, Failed):
            raise PayloadError(answer.message) if answer.error == "payload" else error_of(answer)
        if self._batch_sizes:
            self._batch_sizes.update(answer.batch_sizes)
        return answer.result


def _trace_batches(traced: Span, pending: PendingRequest) -> None:
    """Add a span for each batch: it ends when the next one begins, or with the request.

    What comes first is the whole chunk, until the runner reports batches of its own (`run_chunk`).
    """
    batches = pending.batches or []
    over = (pending.finished_at or time.time(), frozenset[int]())
    before: frozenset[int] = frozenset()
    for number, ((begin, positions), (end, _)) in enumerate(pairwise((*batches, over)[: MAX_TRACED_BATCHES + 1])):
        prepares = number == 0 and len(batches) > 1
        # On a GPU the batch before is named again, as it may still run.
        records = len(positions if prepares else positions - before or positions)
        before = frozenset() if prepares else positions
        name = "hugqueue.prepare" if prepares else "hugqueue.batch"
        traced.add_child(name, begin, end, {"messaging.batch.message_count": records})


def _record_exit(chunk: _ChunkRequest, plan: Isolation, process_exit: ProcessExit) -> None:
    suspects = list(process_exit.suspects) or "unknown"
    logger.warning("job %s, suspects %s: %s", chunk.spec.id, suspects, process_exit.failure.message)
    plan.died(process_exit.suspects, process_exit.failure)


def _declared_type(spec: JobSpec) -> Any:
    """Return the Arrow type of the job's outputs; None if only its runner knows, which may be the length of vectors."""
    form = declared_output(spec)
    return None if form is None or form.holds_vectors else form.arrow_type()


def _merged(chunk: _ChunkRequest, failures: dict[int, tuple[Json, Outcome]]) -> ChunkResult:
    """Return the outcomes of the parts of a chunk as one result, in the order of the records."""
    payloads = [result.payload for result in chunk.results]
    kind = output_type(payloads[0]) if payloads else _declared_type(chunk.spec)
    found = sorted((overlay(payloads) | failures).items())
    positions = [position for position, _ in found]
    ids, outcomes = [id_ for _, (id_, _) in found], [outcome for _, (_, outcome) in found]
    run_info = chunk.results[-1].run_info if chunk.results else {}
    seconds = sum(result.seconds for result in chunk.results)
    effort = sum((result.effort for result in chunk.results), Effort())
    return ChunkResult(encode_outcomes(positions, ids, outcomes, kind), count(outcomes), seconds, run_info, effort)
