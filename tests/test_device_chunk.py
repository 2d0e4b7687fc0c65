"""Runners at fault: the record at fault fails alone, with a code, and the rest goes on."""

import sys
from collections.abc import Iterator, Sequence

import pytest

from common.errors import ModelError, RecordError, WorkerError
from common.payloads import decode_outcomes, iter_outcomes
from common.values import Outcome, Record
from tests.processes import PLUGINS
from workers.device.chunk import Answer, DeviceLost, is_device_lost, run_chunk
from workers.runners.base import Cancelled, Runner
from workers.runners.table import find_runner


class Watched:
    """A watch that notes what it was told, and gives the chunk up when a batch holds a position."""

    def __init__(self, give_up_at: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self._give_up_at = give_up_at

    def batch(self, positions: Sequence[int]) -> None:
        self.batches.append(list(positions))
        if len(self.batches) > 1 and self._give_up_at in positions:
            raise Cancelled

    def tick(self) -> None:
        pass


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PLUGINS))
    yield
    sys.modules.pop("hugqueue_test_runners", None)


def _runner(task: str) -> Runner:
    return find_runner(task)(task, None, "cpu", {})


def _run(runner: Runner, inputs: Sequence[object], watch: Watched | None = None, first: int = 0) -> Answer:
    records = {first + at: Record(at, value) for at, value in enumerate(inputs)}
    return run_chunk(runner, records, {}, "cpu", watch or Watched())


def _codes(answer: Answer) -> list[str | None]:
    rows = iter_outcomes(decode_outcomes(answer.payload))
    return [outcome.failure.code if outcome.failure else None for _, _, outcome in rows]


def test_a_runner_that_raises_costs_the_records_it_raises_for():
    answer = _run(_runner("test-crash"), ["a", "raise", "c", "memory", "e"])
    assert _codes(answer) == [None, "runner_error", None, "out_of_memory", None]
    assert (answer.counts.succeeded, answer.counts.failed) == (3, 2)


def test_too_few_outcomes_fail_the_records_rather_than_shift_them():
    assert _codes(_run(_runner("test-short"), ["a", "b", "c"])) == ["runner_error"] * 3


def test_an_output_that_cannot_be_written_fails_its_record():
    assert _codes(_run(_runner("test-unwritable"), ["a", "object", "c"])) == [None, "runner_error", None]


def test_an_output_of_another_type_than_declared_fails_its_record():
    runner = _runner("test-vector")
    runner.one = lambda text, params, watch: Outcome([1.0] if text == "short" else [1.0, 2.0, 3.0])
    assert _codes(_run(runner, ["a", "short", "c"])) == [None, "runner_error", None]


def test_a_record_error_keeps_its_code():
    runner = _runner("test-echo")

    def one(text: str, *_: object) -> Outcome:
        if text == "bad":
            raise RecordError("no_mask", "no mask in it")
        return Outcome(text)

    runner.one = one
    assert _codes(_run(runner, ["a", "bad"])) == [None, "no_mask"]


@pytest.mark.parametrize("error", [ModelError("x", "x"), WorkerError("x", "x"), Cancelled()])
def test_what_is_not_a_records_fault_passes(error: Exception):
    runner = _runner("test-echo")

    def one(*_: object) -> Outcome:
        raise error

    runner.one = one
    with pytest.raises(type(error)):
        _run(runner, ["a"])


def test_a_chunk_given_up_between_batches_raises():
    with pytest.raises(Cancelled):
        _run(_runner("test-echo"), ["a"] * 10, Watched(give_up_at=8))


def test_batches_are_announced_by_the_positions_of_the_chunk():
    watch = Watched()
    _run(_runner("test-echo"), ["a"] * 6, watch, first=100)
    assert watch.batches == [list(range(100, 106)), [100, 101, 102, 103], [104, 105]]


def test_an_error_that_ruins_the_device_is_no_records_fault():
    with pytest.raises(DeviceLost):
        _run(_runner("test-crash"), ["a", "gpu-lost"])


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("CUDA error: out of memory", False),
        ("The size of tensor a (5) must match", False),
    ],
)
def test_lost_devices_are_told_from_other_errors(text: str, lost: bool):
    assert is_device_lost(RuntimeError(text)) is lost
