"""Attention by batched products: equal to torch's, for every length, mask and packed row it takes, and else torch's."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.inference.loading import cpu_attention
from workers.inference.loading.cpu_attention import (
    ATTENTION,
    ATTENTION_BFLOAT16,
    attend_packed,
    batched_attention,
    use_batched_attention,
)
from workers.inference.loading.outputs_match import outputs_match

HEADS, WIDTH = 3, 8


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have batched products win their race, as they do on most processors."""
    torch.manual_seed(0)
    monkeypatch.setattr(cpu_attention, "batched_is_faster", lambda *_: True)


class Bidirectional(nn.Module):
    is_causal = False


def parts(texts: int, tokens: int) -> list[Tensor]:
    """Query, key and value as models have them: the heads are a transposed view."""
    return [torch.randn(texts, tokens, HEADS, WIDTH).transpose(1, 2) for _ in range(3)]


def padding(tokens: int, *lengths: int, left: bool = False) -> Tensor:
    seen = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    return (seen.flip(1) if left else seen)[:, None, None]


def window(tokens: int, side: int) -> Tensor:
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril(side).triu(-side)


@pytest.mark.parametrize(
    ("tokens", "mask"),
    [
        (1, None),
        (5, None),
        (16, None),
        (33, None),
        (5, padding(5, 5, 3)),
        (33, padding(33, 33, 30)),
        (33, padding(33, 33, 33)),
        (33, padding(33, 33, 30, left=True)),
        (33, window(33, 4)),
        (33, window(33, 4) & padding(33, 33, 30)),
        (33, torch.ones(1, 1, 33, 33, dtype=torch.bool).tril()),
    ],
)
def test_it_gives_what_torch_gives(tokens, mask):
    inputs = parts(2, tokens)
    module = Bidirectional()
    if mask is not None and mask.shape[2] == 1:  # as transformers makes it
        mask = mask.expand(-1, -1, tokens, -1)
    found, _ = batched_attention(module, *inputs, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(module, *inputs, mask, scaling=0.3)
    seen = torch.ones(2, tokens, dtype=torch.bool) if mask is None else mask.any(-2)[:, 0].expand(2, -1)
    torch.testing.assert_close(found[seen], expected[seen])
    assert found.isfinite().all()
    low, _ = batched_attention(module, *inputs, mask, scaling=0.3, dtype=torch.bfloat16)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low[seen], expected[seen], atol=2e-2, rtol=2e-2)


def test_what_it_does_not_compute_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(cpu_attention, "_attend", None)  # a call of it fails
    query, key, value = parts(2, 7)
    added = torch.randn(2, 1, 7, 7)
    cases: list[tuple[nn.Module, list[Tensor], Tensor | None, dict[str, Any]]] = [
        (nn.Module(), [query, key, value], None, {}),  # causal
        (Bidirectional(), [query, key, value], added, {}),
        (Bidirectional(), [query, key, value], None, {"position_bias": added}),
        (Bidirectional(), [query[:, :, :1], key, value], None, {}),  # the next token, with cached keys
        (Bidirectional(), [part.half() for part in (query, key, value)], None, {}),
        (Bidirectional(), parts(1, 300), None, {}),
    ]
    for module, inputs, mask, options in cases:
        found, _ = batched_attention(module, *inputs, mask, **options)
        expected, _ = sdpa_attention_forward(module, *inputs, mask, **options)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("side", [None, 4])
@pytest.mark.parametrize("lengths", [[7], [300, 270, 40, 40, 40, 39, 36, 9, 1, 1], [3, 80, 2, 80]])
def test_packed_texts_attend_each_to_itself(monkeypatch, lengths, side, batched):
    monkeypatch.setattr(cpu_attention, "batched_is_faster", lambda *_: batched)
    inputs = parts(1, sum(lengths))
    begins = torch.tensor([0, *lengths]).cumsum(0)
    found = attend_packed(*inputs, begins, 0.3, side)
    expected = []
    for begin, tokens in zip(begins, lengths, strict=False):
        mask = None if side is None else window(tokens, side)
        one = [part[:, :, begin : begin + tokens] for part in inputs]
        expected.append(nn.functional.scaled_dot_product_attention(*one, mask, scale=0.3).transpose(1, 2))
    torch.testing.assert_close(found, torch.cat(expected, 1))


def encoder() -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 100}
    return transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=64)).eval()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_model_takes_it_if_its_output_agrees(bfloat16):
    model, ids = encoder(), torch.arange(2, 26).view(2, 12)
    seen = torch.ones_like(ids)
    seen[1, 9:] = 0
    with torch.inference_mode():
        expected = model(ids, seen).last_hidden_state
        use_batched_attention(model, lambda *_: True, bfloat16=bfloat16)
        assert model.config._attn_implementation == (ATTENTION_BFLOAT16 if bfloat16 else ATTENTION)
        found = model(ids, seen).last_hidden_state
    tolerance = 3e-2 if bfloat16 else 1e-5
    torch.testing.assert_close(found[seen.bool()], expected[seen.bool()], atol=tolerance, rtol=tolerance)


def test_a_model_keeps_torch_if_its_output_would_change_or_it_is_no_faster(monkeypatch):
    model = encoder()
    use_batched_attention(model, lambda *_: False)
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(cpu_attention, "batched_is_faster", lambda *_: False)
    use_batched_attention(model, outputs_match, bfloat16=True)
    assert model.config._attn_implementation == "sdpa"
