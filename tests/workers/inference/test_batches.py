"""Batches: what shares one, what memory running out costs, and which errors are nobody's record's fault."""

from collections.abc import Callable, Sequence

import pytest

from common.records import Failure
from tests.support.tiny_models import RecordingMonitor
from workers.inference.core.async_copy import PendingResult
from workers.inference.core.batches import Item, make_batches, run_batches
from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.token_budget import TokenBudget


def items(*lengths: int) -> list[Item[int]]:
    return [Item(position, length, length) for position, length in enumerate(lengths)]


def fits(limit: int, error: Exception) -> Callable[[list[int]], Sequence[str]]:
    """A forward pass for which memory holds `limit` padded tokens, and no more."""

    def forward(values: list[int]) -> Sequence[str]:
        if max(values) * len(values) > limit:
            raise error
        return [str(value) for value in values]

    return forward


def test_batches_hold_neighbors_in_length_within_the_budget():
    monitor = RecordingMonitor()
    found = run_batches(items(3, 10, 4, 9, 1), fits(99, MemoryError()), TokenBudget(20, 64), monitor)
    assert found == ["3", "10", "4", "9", "1"]
    assert monitor.batches == [[1, 3], [0, 2], [4]]


def test_a_batch_takes_much_shorter_items_only_while_padding_is_cheap():
    found = [
        list(map(len, make_batches(items(*[9] * 4, 2, 2), TokenBudget(40, 64, pads_to_longest=pads_to_longest))))
        for pads_to_longest in (True, False)
    ]
    assert found == [[4, 2], [6]]
    found = [
        list(map(len, make_batches(items(*[9] * 2, 2, 2), TokenBudget(40, 64, pads_to_longest=pads_to_longest))))
        for pads_to_longest in (True, False)
    ]
    assert found == [[2, 2], [4]]
    assert [len(batch) for batch in make_batches(items(9, 2, 2), TokenBudget(40, 64))] == [2, 1]
    generation = TokenBudget.of("cpu", generates=True)
    assert [len(batch) for batch in make_batches(items(*[150] * 20, *range(30, 60)), generation)] == [50]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory",  # of pinned memory
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_runs_out_is_no_lost_device(text: str):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_device_lost(RuntimeError(text))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")])
def test_out_of_memory_halves_the_batch_and_lowers_the_budget_for_good(error: Exception):
    budget, monitor = TokenBudget(64, 64), RecordingMonitor()
    assert run_batches(items(*[4] * 16), fits(16, error), budget, monitor) == ["4"] * 16
    assert budget.tokens <= 32
    again = RecordingMonitor()
    run_batches(items(*[4] * 16), fits(16, error), budget, again)
    assert len(again.batches) < len(monitor.batches)


def test_packed_batches_that_do_not_fit_are_halved_by_the_tokens_they_hold():
    def forward(values: list[int]) -> Sequence[str]:
        if sum(values) > 40:
            raise MemoryError
        return [str(value) for value in values]

    budget, monitor = TokenBudget(50, 64, pads_to_longest=False), RecordingMonitor()
    run_batches(items(20, *[1] * 60), forward, budget, monitor)
    assert budget.tokens == 25
    assert budget.tokens_run == 80


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB")])
def test_a_record_too_large_for_memory_fails_alone(error: Exception):
    found = run_batches(items(2, 50, 3), fits(10, error), TokenBudget(2048, 64), RecordingMonitor())
    assert [one.code if isinstance(one, Failure) else one for one in found] == ["2", "out_of_memory", "3"]


def test_a_lost_device_is_not_tried_again_with_smaller_batches():
    monitor = RecordingMonitor()
    with pytest.raises(RuntimeError, match="device-side assert"):
        run_batches(items(2, 2), fits(1, RuntimeError("CUDA error: device-side assert")), TokenBudget(99, 9), monitor)
    assert len(monitor.batches) == 1


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("The size of tensor a (5) must match", False),
    ],
)
def test_lost_devices_differ_from_other_errors(text: str, lost: bool):
    assert is_device_lost(RuntimeError(text)) is lost


class Device:
    """Computes as a GPU does: what was started is there when it is read; `broken` items fail as it is read."""

    def __init__(self, broken: int = -1) -> None:
        self.said: list[str] = []
        self._broken = broken

    def forward(self, values: list[int]) -> PendingResult[str]:
        self.said.append(f"start {values}")

        def read() -> list[str]:
            self.said.append(f"read {values}")
            if self._broken in values:
                raise ValueError(f"cannot do {self._broken}")
            return [str(value) for value in values]

        return PendingResult(read)


def test_a_batch_is_started_before_the_results_of_the_last_are_read():
    device, monitor = Device(), RecordingMonitor()
    found = run_batches(items(3, 10, 4, 9, 1), device.forward, TokenBudget(20, 64), monitor)
    assert found == ["3", "10", "4", "9", "1"]
    assert device.said == [
        "start [10, 9]", "start [4, 3]", "read [10, 9]", "start [1]", "read [4, 3]", "read [1]",
    ]  # fmt: skip
    assert monitor.batches == [[1, 3], [0, 1, 2, 3], [0, 2, 4]]  # those that run, too: any of them may be the fatal one


def test_an_item_that_fails_as_it_is_read_fails_alone():
    found = run_batches(items(3, 10, 4, 9, 1), Device(broken=9).forward, TokenBudget(20, 64), RecordingMonitor())
    assert [one if isinstance(one, str) else one.code for one in found] == ["3", "10", "4", "runner_error", "1"]
