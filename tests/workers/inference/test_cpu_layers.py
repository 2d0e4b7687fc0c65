"""Faster layers for CPUs: which layers and activations are replaced, and that outputs stay."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from workers.inference.loading import cpu_layers
from workers.inference.loading.cpu_layers import (
    Int8Linear,
    OneDnnLinear,
    onednn_multiplies_int8,
    quantize_int8,
    use_onednn_linear,
)
from workers.inference.loading.dtypes import in_full_precision
from workers.inference.loading.linear_layers import FUSED_ACTIVATIONS
from workers.inference.loading.outputs_match import points_the_same_way
from workers.inference.loading.shared_product import SharedLinear, SharedProduct

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 100}
CONFIGS = {
    "bert": {**SIZES, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 100},
    "llama": {**SIZES, "intermediate_size": 64, "num_key_value_heads": 1},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2, "vocab_size": 100},
    "albert": {**SIZES, "intermediate_size": 64, "embedding_size": 16},  # its layers share their modules
}


def packs_bfloat16() -> bool:
    """Whether oneDNN takes weights in bfloat16 here; x86 needs AVX-512 or AVX-NE-CONVERT for it."""
    try:
        OneDnnLinear(torch.ones(8, 8, dtype=torch.bfloat16), None)
    except RuntimeError:
        return False
    return True


in_bfloat16 = pytest.mark.skipif(not packs_bfloat16(), reason="oneDNN has no bfloat16 on this processor")


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have oneDNN win its race, as it does on some processors."""
    torch.manual_seed(0)
    monkeypatch.setattr(cpu_layers, "onednn_is_faster", lambda _: True)
    yield


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind])
    made = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModel
    return made.from_config(config).to(dtype).eval()


@torch.inference_mode()
def output(model: Any) -> torch.Tensor:
    ids = torch.arange(2, 14).view(2, 6)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more)[0].float()


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=in_bfloat16)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_and_the_activations_behind_them_are_replaced_and_outputs_stay(kind, dtype):
    model = model_of(kind, dtype)
    expected = output(model)
    use_onednn_linear(model)
    layers = [module for module in model.modules() if isinstance(module, OneDnnLinear)]
    assert any(layer._activation in ("gelu", "swish", "relu") for layer in layers)
    assert not any(type(module) in FUSED_ACTIVATIONS for module in model.modules())
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(output(model), expected, atol=tolerance, rtol=tolerance)


class TwoUses(nn.Module):
    """An activation that takes the output of a layer, and later its own input again."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(8, 8), nn.ReLU()

    def get_output_embeddings(self) -> None:
        return None

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"values": torch.ones(1, 8)}

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"output": self.act(self.act(self.layer(values)) - 1)}


def test_an_activation_with_other_inputs_stays():
    model, values = TwoUses(), torch.randn(3, 8)
    expected = model(values)["output"]
    use_onednn_linear(model)
    assert isinstance(model.layer, OneDnnLinear)
    assert isinstance(model.act, nn.ReLU)
    torch.testing.assert_close(model(values)["output"], expected)


def test_layers_in_bfloat16_compute_in_full_precision_for_a_while():
    model = model_of("bert", torch.bfloat16)
    use_onednn_linear(model)
    low = output(model)
    with in_full_precision(model):
        full = output(model)
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, atol=5e-2, rtol=5e-2)
    assert torch.equal(output(model), low)


@pytest.mark.skipif(
    not onednn_multiplies_int8(), reason="oneDNN has no exact product of int8 on this processor, or a slower one"
)
def test_both_ways_to_multiply_int8_give_the_same(monkeypatch):
    layer, values = nn.Linear(64, 48), torch.randn(5, 7, 64)
    found = []
    for packed in (True, False):
        monkeypatch.setattr(cpu_layers, "onednn_multiplies_int8", lambda packed=packed: packed)
        found.append(Int8Linear(layer.weight.detach(), layer.bias.detach())(values))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 63, 5), (513, 62, 8), (0, 64, 8), (600, 64, 1)])
def test_int8_takes_any_shape(monkeypatch, rows, inputs, outputs, packed):
    if packed and not onednn_multiplies_int8():
        pytest.skip("oneDNN has no exact product of int8 on this processor, or a slower one")
    monkeypatch.setattr(cpu_layers, "onednn_multiplies_int8", lambda: packed)
    layer, values = nn.Linear(inputs, outputs, bias=False), torch.randn(rows, inputs)
    values[rows // 2 :] = 3.0
    values[rows // 4 : rows // 2] = 0.0
    expected = layer(values)
    found = Int8Linear(layer.weight.detach(), None)(values)
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=5e-2)


def test_large_numbers_of_one_sign_do_not_saturate():
    weight, values = torch.rand(48, 256) + 0.5, torch.rand(32, 256) + 0.5
    torch.testing.assert_close(Int8Linear(weight, None)(values), values @ weight.t(), rtol=1e-2, atol=0)


def test_an_output_with_infinity_is_compared_without_it():
    expected = torch.tensor([1.0, 2.0, -float("inf")])
    assert points_the_same_way(torch.tensor([1.01, 2.0, -float("inf")]), expected)
    assert not points_the_same_way(torch.tensor([1.0, 2.0, 3.0]), expected)
    assert not points_the_same_way(torch.tensor([1.0, float("nan"), -float("inf")]), expected)
    assert points_the_same_way(torch.zeros(2), torch.zeros(2))


def test_int8_gives_nan_for_what_is_too_large_and_for_nan():
    layer = Int8Linear(torch.randn(8, 64), None)
    values = torch.randn(4, 64)
    values[1, 5], values[2, 7] = float("inf"), -float("inf")
    values[3, 9] = float("nan")
    assert layer(values).isfinite().all(dim=1).tolist() == [True, False, False, False]


def test_a_model_that_gives_nan_is_not_quantized_as_int8_would_overlook_it():
    model = model_of("bert")
    with torch.no_grad():
        model.embeddings.LayerNorm.weight[3] = float("nan")
    assert not quantize_int8(model)
    assert output(model).isnan().any()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_in_int8_has_the_same_activations(kind):
    model = model_of(kind)
    expected = output(model)
    assert quantize_int8(model)
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    assert not any(type(module) in FUSED_ACTIVATIONS for module in model.modules())
    cosine = nn.functional.cosine_similarity(output(model), expected, dim=-1)
    assert cosine.min() > 0.99


def test_layers_with_one_input_are_one_product():
    model = model_of("llama")
    use_onednn_linear(model)
    attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
    assert all(isinstance(layer, SharedLinear) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert attention.q_proj.shared is attention.v_proj.shared
    assert attention.q_proj.shared is not model.layers[1].self_attn.q_proj.shared
    assert attention.q_proj.shared.out_features == 32 + 2 * 16
    assert isinstance(attention.o_proj, OneDnnLinear)
    assert isinstance(mlp.up_proj, OneDnnLinear)  # its neighbor computes an activation too


def test_parts_of_a_product_may_be_asked_for_in_any_order_and_again():
    layers = [nn.Linear(4, size) for size in (2, 3)]
    joined = nn.Linear(4, 5)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([layer.weight for layer in layers]))
        joined.bias.copy_(torch.cat([layer.bias for layer in layers]))
    product = SharedProduct(joined, [2, 3])
    one, other = torch.randn(6, 4), torch.randn(6, 4)
    for position, values in ((1, one), (1, one), (0, other), (0, one), (1, one), (1, other), (0, other)):
        torch.testing.assert_close(product.part(position, values), layers[position](values))
    assert product._input is None  # nothing is kept once all have their part


def test_a_product_that_fails_leaves_no_parts_behind():
    def fails_for_two(values: torch.Tensor) -> torch.Tensor:
        if values[0] == 2:
            raise MemoryError
        return torch.cat([values, values * 10])

    product = SharedProduct(fails_for_two, [1, 1])
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    product.part(0, one)
    with pytest.raises(MemoryError):
        product.part(0, two)
    with pytest.raises(MemoryError):
        product.part(1, two)
    assert product.part(1, one) == 10
