"""What the device process does of the next chunk while it computes one, and that nobody pays for it."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.device_process import RunningDevice, codes, outcomes, running_device
from tests.support.processes import wait_until
from tests.support.tiny_models import RecordingMonitor, masked_bert
from workers.device.server.server import _SERIAL_REQUESTS
from workers.inference.tasks.pipeline_runner import PipelineRunner

AHEAD, MAIN = "_prefetch", "MainThread"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningDevice]:
    with running_device(monkeypatch, prefetch=True) as started:
        yield started


def _trusting(device: RunningDevice) -> RunningDevice:
    """Return the device once its process has done so much that it looks ahead."""
    for _ in range(_SERIAL_REQUESTS + 1):  # one more, as a request is answered before it is counted
        device.run("test-ahead", ["a"])
    return device


def _threads(result: object) -> set[object]:
    return {outcome.output for outcome in outcomes(result).values()}


def test_the_next_chunk_is_prepared_while_one_is_computed(device: RunningDevice, tmp_path: Path):
    params = {"prepared": str(tmp_path / "prepared")}
    _trusting(device)
    first = device.submit("test-ahead", ["wait"], params=params)  # which ends when the second one is prepared
    second = device.submit("test-ahead", ["there"], params=params)
    assert codes(first.result(timeout=30)) == {}
    assert _threads(second.result(timeout=30)) == {AHEAD}


def test_on_a_cpu_no_chunk_is_prefetched(monkeypatch: pytest.MonkeyPatch):
    with running_device(monkeypatch) as device:
        assert _threads(_trusting(device).run("test-ahead", ["a"])) == {MAIN}


def test_a_fresh_process_does_one_chunk_after_the_other(device: RunningDevice):
    assert [_threads(device.run("test-ahead", ["a"])) for _ in range(_SERIAL_REQUESTS)] == [{MAIN}] * _SERIAL_REQUESTS


def test_a_chunk_whose_preparation_kills_costs_no_other_chunk_a_record(device: RunningDevice, tmp_path: Path):
    go = tmp_path / "prepared"
    pid = _trusting(device).pid()
    first = device.submit("test-ahead", ["wait", "b"], params={"prepared": str(go)})
    second = device.submit("test-ahead", ["a", "crash", "c"])
    wait_until(lambda: device.pid() != pid, 20, "the process has died of the second chunk")
    go.touch()
    assert codes(first.result(timeout=30)) == {}
    assert codes(second.result(timeout=30)) == {1: "worker_died"}


def test_an_output_whose_encoding_kills_costs_no_other_chunk_a_record(device: RunningDevice, tmp_path: Path):
    go = tmp_path / "go"
    pid = _trusting(device).pid()
    first = device.submit("test-unwritable", ["a", "crash", "c"])
    second = device.submit("test-unwritable", ["b", "d"], params={"until": str(go)})  # computed while that is encoded
    wait_until(lambda: device.pid() != pid, 20, "the process has died of the first chunk")
    go.touch()
    assert codes(first.result(timeout=30)) == {1: "worker_died"}
    assert codes(second.result(timeout=30)) == {}


def test_a_record_that_cannot_be_prepared_fails_alone(device: RunningDevice):
    _trusting(device)
    assert codes(device.run("test-ahead", ["a", "raise", "c"])) == {1: "runner_error"}
    wait_until(lambda: device.process.fallbacks == {"prefetch": 1}, 30, "what it swallowed is counted")
    pid = device.pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: device.pid() != pid, 20, "another process")
    assert device.process.fallbacks == {"prefetch": 1}, "and stays counted"


def test_a_chunk_is_prefetched_for_forward_batch_and_not_for_the_pipeline(tmp_path: Path):
    runner = PipelineRunner("fill-mask", masked_bert(tmp_path), "cpu")

    class Trying(RecordingMonitor):
        """Tries to prepare a chunk in another thread before each batch; it must not where a tokenizer is set again."""

        tried: ClassVar[list[bool]] = []

        def batch(self, positions: Sequence[int]) -> None:
            free = not runner._tokenizer_lock.locked()
            if free:
                pool.submit(runner.prepare, ["the [MASK]"], {}).result(timeout=30)
            self.tried.append(free)

    with ThreadPoolExecutor() as pool:
        runner.run(["the [MASK]" + " city" * 90, "the [MASK]"], {}, Trying())
    assert Trying.tried == [True, False]
