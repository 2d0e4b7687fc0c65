"""Attention of one new token of each text: equal to torch's, and used where transformers attends by `sdpa`."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.support import tiny_models
from tests.support.pipeline_reference import runner_of
from tests.support.tiny_models import RecordingMonitor, mixed
from workers.inference.loading import decode_attention
from workers.inference.loading.decode_attention import decode_or_sdpa

TEXTS, TOKENS, WIDTH = 16, 21, 8
OWN_IS_FASTER = decode_attention._is_faster.__wrapped__


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have batched products win their race in every dtype."""
    torch.manual_seed(0)
    monkeypatch.setattr(decode_attention, "_is_faster", lambda _: True)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The queries that batched products took."""
    taken: list[Tensor] = []
    own = decode_attention._attend

    def attend(query: Tensor, *others: object) -> Tensor:
        taken.append(query)
        return own(query, *others)

    monkeypatch.setattr(decode_attention, "_attend", attend)
    return taken


def seen() -> Tensor:
    """A mask of texts of several lengths, padded on the left."""
    return (torch.arange(TOKENS) >= torch.arange(TEXTS)[:, None])[:, None, None]


def added(lowest: float) -> Tensor:
    return torch.zeros(TEXTS, 1, 1, TOKENS).masked_fill(~seen(), lowest)


def layer(heads: int, of_keys: int) -> nn.Module:
    module = nn.Module()
    module.num_key_value_groups = heads // of_keys
    return module


def inputs(heads: int, of_keys: int, *, queries: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value, of which the last two are a part of a larger cache."""
    cache = [torch.randn(TEXTS, of_keys, TOKENS + 9, width).to(dtype) for width in (WIDTH, WIDTH + 2)]
    return [torch.randn(TEXTS, heads, queries, WIDTH).to(dtype), *(part[:, :, 4 : 4 + TOKENS] for part in cache)]


@pytest.mark.parametrize("mask", [seen(), added(torch.finfo(torch.float32).min), added(-torch.inf), seen()[3:4], None])
@pytest.mark.parametrize(("heads", "of_keys"), [(9, 3), (4, 4), (6, 2)])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_one_token_of_each_text_attends_as_by_torch(products, mask, heads, of_keys, scaling):
    module, parts = layer(heads, of_keys), inputs(heads, of_keys)
    found, _ = decode_or_sdpa(module, *parts, mask, scaling=scaling)
    expected, _ = sdpa_attention_forward(module, *parts, mask, scaling=scaling)
    torch.testing.assert_close(found, expected)
    assert found.shape == (TEXTS, 1, heads, WIDTH + 2)
    assert len(products) == 1


@pytest.mark.parametrize("mask", [seen(), added(-torch.inf).bfloat16()])
def test_bfloat16_differs_by_rounding(products, mask):
    module, parts = layer(9, 3), inputs(9, 3, dtype=torch.bfloat16)
    found, _ = decode_or_sdpa(module, *parts, mask)
    expected, _ = sdpa_attention_forward(module, *(part.float() for part in parts), seen())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)
    assert len(products) == 1


@pytest.mark.parametrize(
    ("parts", "mask", "options"),
    [
        (inputs(9, 3, queries=2), seen().expand(-1, -1, 2, -1), {}),
        ([part[:2] for part in inputs(9, 3)], None, {}),  # too few
        (inputs(9, 3), seen().expand(-1, 9, -1, -1), {}),  # another mask for each head
        (inputs(9, 3), seen(), {"position_bias": torch.randn(TEXTS, 9, 1, TOKENS)}),
    ],
    ids=["two tokens", "few texts", "mask of heads", "position bias"],
)
def test_all_else_is_left_to_transformers(products, parts, mask, options):
    found, _ = decode_or_sdpa(layer(9, 3), *parts, mask, **options)
    expected, _ = sdpa_attention_forward(layer(9, 3), *parts, mask, **options)
    assert torch.equal(found, expected)
    assert products == []


def test_other_dtypes_are_left_to_transformers(products, monkeypatch):
    monkeypatch.setattr(decode_attention, "_is_faster", OWN_IS_FASTER)
    monkeypatch.setattr(decode_attention, "best_seconds", lambda *_: (2.0, 1.0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        decode_or_sdpa(layer(9, 3), *inputs(9, 3, dtype=dtype), None)
    assert [query.dtype for query in products] == [torch.bfloat16]


def test_what_sdpa_refuses_is_refused(products):
    with pytest.raises(ValueError, match="softcap"):
        decode_or_sdpa(layer(9, 3), *inputs(9, 3), seen(), softcap=30.0)
    assert products == []


def test_a_model_generates_the_same(tmp_path: Path, products, monkeypatch):
    texts, greedy = mixed(40, longest=20), {"do_sample": False, "max_new_tokens": 6}
    runner = runner_of("text-generation", tiny_models.causal_gpt2(tmp_path))
    found = runner.run(texts, greedy, RecordingMonitor())
    assert products
    monkeypatch.setattr(decode_attention, "_is_faster", lambda _: False)
    assert [one.output for one in runner.run(texts, greedy, RecordingMonitor())] == [one.output for one in found]
