"""Runners at fault: the record at fault fails alone, with a code, and the rest goes on."""

import sys
from collections.abc import Iterator, Mapping, Sequence

import pytest

from common.errors import Cancelled, ModelError, RecordError, WorkerError
from common.payloads.codec import decode_outcomes, iter_outcomes
from common.records import Counts, Json, Outcome, Record
from tests.support.processes import PLUGINS
from workers.device.server.encode_chunk import OutputEncoding, encode_chunk
from workers.device.server.run_chunk import DeviceLost, run_chunk
from workers.inference.core.runner import RunMonitor, Runner
from workers.inference.tasks.runners import find_runner
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


class Watched:
    """A watch that notes what it was told, and gives the chunk up when a batch holds a position."""

    def __init__(self, abandon_at: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self._abandon_at = abandon_at

    def batch(self, positions: Sequence[int]) -> None:
        self.batches.append(list(positions))
        if len(self.batches) > 1 and self._abandon_at in positions:
            raise Cancelled

    def tick(self) -> None:
        pass


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PLUGINS))
    yield
    sys.modules.pop("hugqueue_test_runners", None)


def _runner(task: str) -> Runner:
    return find_runner(task)(task, None, "cpu", DEFAULT_OPTIONS)


def _run(
    runner: Runner, inputs: Sequence[object], monitor: Watched | None = None, first: int = 0
) -> tuple[bytes, Counts]:
    records = {first + at: Record(at, value) for at, value in enumerate(inputs)}
    outcomes = run_chunk(runner, records, {}, "cpu", monitor or Watched())
    return encode_chunk(records, outcomes, OutputEncoding(runner.output_type({})))


def _codes(answer: tuple[bytes, Counts]) -> list[str | None]:
    rows = iter_outcomes(decode_outcomes(answer[0]))
    return [outcome.failure.code if outcome.failure else None for _, _, outcome in rows]


def test_a_runner_that_raises_costs_the_records_it_raises_for():
    answer = _run(_runner("test-crash"), ["a", "raise", "c", "memory", "e"])
    assert _codes(answer) == [None, "runner_error", None, "out_of_memory", None]
    assert (answer[1].succeeded, answer[1].failed) == (3, 2)


def test_too_few_outcomes_fail_the_records_rather_than_shift_them():
    assert _codes(_run(_runner("test-short"), ["a", "b", "c"])) == ["runner_error"] * 3


def test_an_output_that_cannot_be_written_fails_its_record():
    assert _codes(_run(_runner("test-unwritable"), ["a", "object", "c"])) == [None, "runner_error", None]


def test_an_output_of_another_type_than_declared_fails_its_record():
    runner = _runner("test-vector")
    runner.one = lambda text, params, monitor: Outcome([1.0] if text == "short" else [1.0, 2.0, 3.0])
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


def test_a_chunk_cancelled_between_batches_raises():
    with pytest.raises(Cancelled):
        _run(_runner("test-echo"), ["a"] * 10, Watched(abandon_at=8))


def test_batches_are_announced_by_the_positions_of_the_chunk():
    monitor = Watched()
    _run(_runner("test-echo"), ["a"] * 6, monitor, first=100)
    assert monitor.batches == [list(range(100, 106)), [100, 101, 102, 103], [104, 105]]


def test_an_error_that_breaks_the_device_is_blamed_on_no_record():
    with pytest.raises(DeviceLost):
        _run(_runner("test-crash"), ["a", "gpu-lost"])


class Steady(Runner):
    """Says of each input how often it ran, and that equal inputs get equal outcomes, if it is told to."""

    needs_model = False

    def __init__(self, task: str, model: object, device: str, options: LoadOptions = DEFAULT_OPTIONS) -> None:
        self.ran: list[Json] = []

    def is_deterministic(self, params: Mapping[str, Json]) -> bool:
        return bool(params["steady"])

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        monitor.batch(range(len(inputs)))
        self.ran += inputs
        return [Outcome({"was": value}) for value in inputs]


@pytest.mark.parametrize("steady", [True, False])
def test_equal_records_run_once_where_their_outcomes_are_equal(steady: bool):
    runner, monitor = Steady("any", None, "cpu"), Watched()
    inputs = ["a", "b", "a", {"text": "a", "top": 1}, {"text": "a", "top": 2}, {"text": "a", "top": 1}, "b"]
    records = {10 + at: Record(at, value) for at, value in enumerate(inputs)}
    outcomes = run_chunk(runner, records, {"steady": steady}, "cpu", monitor)
    assert [outcome.output for outcome in outcomes] == [{"was": value} for value in inputs]
    assert runner.ran == ([inputs[at] for at in (0, 1, 3, 4)] if steady else inputs)
    assert monitor.batches[-1] == list(range(10, 17))  # should it die now, each copy is a suspect
