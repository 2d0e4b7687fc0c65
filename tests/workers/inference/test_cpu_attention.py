"""Attention of packed rows: equal to torch's for each text by itself, for every length and window."""

import pytest
import torch
from torch import Tensor, nn

from workers.inference.loading import cpu_attention
from workers.inference.loading.cpu_attention import _runs, attend_packed

HEADS, WIDTH = 3, 8
LENGTHS = [[7], [16, 16], [300, 270, 40, 40, 40, 39, 36, 9, 1, 1], [3, 80, 2, 80]]


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have batched products win their race, as they do on most processors."""
    torch.manual_seed(0)
    monkeypatch.setattr(cpu_attention, "batched_is_faster", lambda *_: True)


def window(tokens: int, side: int) -> Tensor:
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril(side).triu(-side)


def parts(tokens: int) -> list[Tensor]:
    """Query, key and value of a packed row as models have them: the heads are a transposed view."""
    return [torch.randn(1, tokens, HEADS, WIDTH).transpose(1, 2) for _ in range(3)]


def separately(inputs: list[Tensor], lengths: list[int], side: int | None) -> Tensor:
    """What torch gives for each text by itself."""
    found, begin = [], 0
    for tokens in lengths:
        one = [part[:, :, begin : begin + tokens] for part in inputs]
        mask = None if side is None else window(tokens, side)
        found.append(nn.functional.scaled_dot_product_attention(*one, mask, scale=0.3).transpose(1, 2))
        begin += tokens
    return torch.cat(found, 1)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("side", [None, 4])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_texts_attend_each_to_itself(monkeypatch, lengths, side, batched):
    monkeypatch.setattr(cpu_attention, "batched_is_faster", lambda *_: batched)
    inputs, begins = parts(sum(lengths)), torch.tensor([0, *lengths]).cumsum(0)
    expected = separately(inputs, lengths, side)
    torch.testing.assert_close(attend_packed(*inputs, begins, 0.3, side), expected)
    low = attend_packed(*(part.bfloat16() for part in inputs), begins, 0.3, side)
    torch.testing.assert_close(low.float(), expected, atol=2e-2, rtol=2e-2)


def test_texts_of_about_equal_length_are_attended_together():
    begins = tuple(torch.tensor([0, 300, 270, 40, 40, 36, 9]).cumsum(0).tolist())
    assert [run.texts for run in _runs(begins, 0.85)] == [2, 3, 1]
    assert [run.texts for run in _runs(begins, 1.0)] == [1, 1, 2, 1, 1]


def test_nan_in_one_text_stays_there():
    lengths = [10, 7, 6, 10]
    inputs, begins = parts(sum(lengths)), torch.tensor([0, *lengths]).cumsum(0)
    inputs[2][0, 0, 0, 0] = float("nan")
    found = attend_packed(*inputs, begins, 0.3, None)[0]
    assert [bool(text.isfinite().all()) for text in found.split(lengths)] == [False, True, True, True]
