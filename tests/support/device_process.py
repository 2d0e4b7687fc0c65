"""A device process for tests, with the runners of `tests/plugins`, and a thread that asks it."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from common.jobs import JobSpec, new_job_id
from common.payloads.codec import decode_outcomes, encode_records, iter_outcomes
from common.records import Json, Outcome, Record
from common.reporting import CancelToken, Reporter
from common.settings import Settings
from tests.support.processes import PLUGINS, wait_until
from workers.device.client.device_client import DeviceClient, IsolationPolicy
from workers.device.protocol import ChunkResult


class StageList(Reporter):
    """Keeps the stages it is told."""

    def __init__(self, stages: list[str]) -> None:
        self._stages = stages

    def stage(self, text: str) -> None:
        self._stages.append(text)


@dataclass
class RunningDevice:
    """A started device process."""

    process: DeviceClient
    stages: list[str] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)

    def run(self, task: str, inputs: Sequence[Json | Record], **more: Any) -> ChunkResult:
        return self.submit(task, inputs, **more).result(timeout=60)

    def submit(
        self,
        task: str,
        inputs: Sequence[Json | Record],
        *,
        params: dict[str, Json] | None = None,
        model: str | None = None,
        positions: Sequence[int] | None = None,
        cancelled: CancelToken | None = None,
        isolated: bool = False,
        payload: bytes | None = None,
        spec: JobSpec | None = None,
    ) -> "Future[ChunkResult]":
        """Ask for a chunk of a job, a new one by default, in a thread; records get the ids `r0`, `r1`, ..."""
        records = [x if isinstance(x, Record) else Record(f"r{at}", x) for at, x in enumerate(inputs)]
        spec = spec or JobSpec(new_job_id(), task, model, params=params or {})
        return self._pool.submit(
            self.process.run,
            spec,
            encode_records(records) if payload is None else payload,
            positions,
            cancel_token=cancelled or CancelToken(),
            reporter=StageList(self.stages),
            isolation=IsolationPolicy({}, lambda _: None) if isolated else None,
        )

    def pid(self) -> int:
        """The id of the process that is alive, or of the next one."""
        return wait_until(lambda: self.process.pid, 20, "a device process is ready")


@contextmanager
def running_device(
    monkeypatch: pytest.MonkeyPatch, *, prefetch: bool | None = None, **settings: Any
) -> Iterator[RunningDevice]:
    """Start a device process with these settings; end it, and see that it is gone."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = DeviceClient(Settings(**({"device": "cpu", "batch_timeout": 20.0} | settings)), prefetch=prefetch)
    try:
        process.start()
        yield RunningDevice(process)
    finally:
        process.stop()
        assert process.pid is None


def outcomes(result: ChunkResult) -> dict[int, Outcome]:
    """The outcomes of a result by position."""
    return {position: outcome for position, _, outcome in iter_outcomes(decode_outcomes(result.payload))}


def codes(result: ChunkResult) -> dict[int, str]:
    """The failures of a result: position to code."""
    return {at: outcome.failure.code for at, outcome in outcomes(result).items() if outcome.failure}


def gone(pid: int) -> bool:
    """Whether a process has ended (or waits to be buried)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
