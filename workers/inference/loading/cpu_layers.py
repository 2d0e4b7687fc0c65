"""Faster linear layers for CPUs: drop-in replacements by oneDNN, and int8 quantization.

`OneDnnLinear` becomes obsolete once torch's own `nn.Linear` is as fast (`onednn_is_faster` is then False), `Int8Linear`
once torch quantizes inputs by token (`quantize_dynamic` of 2.x has one scale for a batch).
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from workers.inference.loading.linear_layers import FUSED, FUSED_AND_SHARED, PLAIN, replace_layers
from workers.inference.loading.outputs_match import outputs_match, points_the_same_way
from workers.inference.loading.probe import best_seconds

logger = logging.getLogger(__name__)

#: Shape of the product that is timed, a layer of a small model: rows, inputs, outputs.
PROBE_SHAPE = (256, 384, 1536)
#: How much faster a replacement must be to be used.
_MIN_SPEEDUP = 1.05
#: Rows that `Int8Linear` takes at once: their numbers stay in a processor's caches from one step to the next.
_BLOCK_ROWS = 512
#: Of the range of uint8.
_MIDDLE = 128
#: The activations of `FUSED_ACTIVATIONS`, each by what computes it in place.
_IN_PLACE: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("none", ""): lambda values: values,
    ("gelu", "none"): torch.ops.aten.gelu_,
    ("gelu", "tanh"): partial(torch.ops.aten.gelu_, approximate="tanh"),
    ("swish", ""): torch.ops.aten.silu_,
    ("relu", ""): torch.relu_,
}


class OneDnnLinear(nn.Module):  # type: ignore[misc]
    """A linear layer by oneDNN, with its weights in the layout of oneDNN's kernels, in float32 or bfloat16.

    For float32, torch takes MKL, which is half as fast on AMD processors; for bfloat16, oneDNN, but brings the weights
    into that layout at each call, which takes as long as the product itself for a few rows, as in generation.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,), or None.
        activation: what is applied to the product, as oneDNN calls it and its algorithm (`FUSED_ACTIVATIONS`).
        pack: whether to copy the weight into that layout; if not, it stays the caller's.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: tuple[str, str] = ("none", ""), *, pack: bool = True
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._activation, self._algorithm = activation
        self.register_buffer("weight", _pack(weight) if pack else weight)
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        # What torch's own compiler emits for a linear layer (torch/_inductor/mkldnn_lowerings.py).
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            values, self.weight, self.bias, self._activation, [], self._algorithm
        )
        return result


class Int8Linear(nn.Module):  # type: ignore[misc]
    """A linear layer that multiplies int8 matrices; inputs and outputs are float32.

    Weights are quantized once, per output; inputs per token (ZeroQuant, Yao et al. 2022), from the least number to the
    largest. One scale for a whole batch, as in torch's `quantize_dynamic`, gave MiniLM's embeddings a cosine of 0.93 to
    the original; this gives 0.99.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,), or None.
        activation: as in `OneDnnLinear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: tuple[str, str] = ("none", "")) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        rounded, scale = _quantize_weight(weight)
        self._packed = onednn_multiplies_int8()
        self._activate = _IN_PLACE[activation]
        self.register_buffer("weight", _pack_int8(rounded) if self._packed else rounded)
        self.register_buffer("scale", scale)
        self.register_buffer("sums", rounded.float().sum(1) * scale)
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int64) if self._packed else None)
        self.register_buffer("bias", weight.new_zeros(self.out_features) if bias is None else bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        rows = values.reshape(-1, self.in_features).float()
        output = rows.new_empty(len(rows), self.out_features)
        for part, result in zip(rows.split(_BLOCK_ROWS), output.split(_BLOCK_ROWS), strict=True):
            self._multiply(part, result)
        return output.view(*values.shape[:-1], self.out_features)

    def _multiply(self, rows: Tensor, output: Tensor) -> None:
        quantized, scale, least = _quantize_rows(rows)
        if self._packed:
            product = _multiply_int8(quantized, self.weight, self.scale, self.zeros)
        else:
            signed = (quantized ^ _MIDDLE).view(torch.int8)
            product = torch._int_mm(signed, self.weight.t()).float().mul_(self.scale)
            least = torch.add(least, scale, alpha=_MIDDLE)
        torch.addcmul(self.bias, product, scale, out=output)
        self._activate(output.addr_(least.squeeze(1), self.sums))


def use_onednn_linear(model: Any) -> None:
    """Compute the linear layers of `model`, on a CPU, by oneDNN if that is faster here and gives the same.

    Activations are computed with the layers before them, and layers with the same input together, if that gives the
    same too.
    """
    if not onednn_is_faster(model.dtype):
        return
    replaced = replace_layers(
        model,
        OneDnnLinear,
        name="cpu_layers",
        agrees=outputs_match,
        head=partial(OneDnnLinear, pack=False),
        attempts=(FUSED_AND_SHARED, FUSED, PLAIN),
    )
    if not replaced:
        logger.info("%s keeps its own linear layers", type(model).__name__)


def quantize_int8(model: Any) -> bool:
    """Compute the linear layers of `model` in int8; return False, and leave it unchanged, if that fails.

    It fails too for a model that gives NaN, which int8 would overlook.
    """
    attempts = FUSED_AND_SHARED, PLAIN
    return replace_layers(model, Int8Linear, name="cpu_layers", agrees=points_the_same_way, attempts=attempts)


@cache
def onednn_is_faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of this type faster than torch's default, on this machine."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    rows, inputs, outputs = PROBE_SHAPE
    values, layer = torch.ones(rows, inputs, dtype=dtype), nn.Linear(inputs, outputs, dtype=dtype)
    try:
        onednn = OneDnnLinear(layer.weight.detach(), layer.bias.detach())
        with torch.inference_mode():
            by_torch, by_onednn = best_seconds(lambda: layer(values), lambda: onednn(values))
        return by_torch > _MIN_SPEEDUP * by_onednn
    except (RuntimeError, AttributeError, NotImplementedError):  # a torch without oneDNN, or without this operator
        return False


@cache
def onednn_multiplies_int8() -> bool:
    """Whether oneDNN multiplies int8 matrices and scales the product in one step, on this machine, and faster so."""
    values, weight = _int8_probe()
    scale, zeros = torch.rand(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
    signed = (values ^ _MIDDLE).view(torch.int8)
    try:
        packed = _pack_int8(weight)
        with torch.inference_mode():
            # Without instructions for int8, sums of two products saturate at 16 bits.
            if not torch.equal(_multiply_int8(values, packed, torch.ones_like(scale), zeros), _exact(values, weight)):
                return False
            by_torch, by_onednn = best_seconds(
                lambda: torch._int_mm(signed, weight.t()).float().mul_(scale),
                lambda: _multiply_int8(values, packed, scale, zeros),
            )
        return by_onednn < by_torch
    except (RuntimeError, AttributeError, NotImplementedError):  # a torch without oneDNN, or without this operator
        return False


@cache
def _largest_weight() -> int:
    """Return what weights may be rounded to: half as much where sums of two products would saturate at 16 bits."""
    if onednn_multiplies_int8():
        return 127
    values, weight = _int8_probe()
    signed = (values ^ _MIDDLE).view(torch.int8)
    product = torch._int_mm(signed, weight.t()) + _MIDDLE * weight.sum(1, dtype=torch.int32)
    return 127 if torch.equal(product.float(), _exact(values, weight)) else 63


def _int8_probe() -> tuple[Tensor, Tensor]:
    """Return uint8 rows and an int8 weight with large numbers of one sign, (rows, inputs) and (outputs, inputs)."""
    rows, inputs, outputs = PROBE_SHAPE
    values = torch.randint(128, 256, (rows, inputs), dtype=torch.uint8)
    return values, torch.randint(64, 128, (outputs, inputs), dtype=torch.int8)


def _exact(values: Tensor, weight: Tensor) -> Tensor:
    return values.float() @ weight.float().t()  # below 2 ** 24, so that float32 is exact


def widen(weight: Tensor) -> Tensor:
    """Return a tensor in float32; the weight of an `OneDnnLinear` in oneDNN's layout."""
    return _pack(weight.to_dense().float()) if weight.is_mkldnn else weight.float()


def _pack(weight: Tensor) -> Tensor:
    """Return (outputs, inputs) in the layout of oneDNN's kernels, for any number of rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def _pack_int8(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def _multiply_int8(rows: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """Return the product of uint8 rows and packed weights, each output times its scale, in float32."""
    # What torch's own compiler emits for a quantized layer (torch/_inductor/mkldnn_lowerings.py).
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight as int8, and the scale of each output, (outputs,)."""
    weight = weight.contiguous()  # a weight of Conv1D is not, and would be packed in the wrong order
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(_largest_weight())
    return (weight / scale).round_().to(torch.int8), scale.squeeze(1)


def _quantize_rows(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `values` as uint8, and the scale and the least number of each row, (rows, 1).

    By what torch quantizes embedding tables with: one pass over memory, where its arithmetic takes six. A row whose
    numbers differ by less than 1e-7 loses precision.
    """
    found: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(values)
    width = values.shape[1]
    # Copied, since `view` takes neither strides nor an offset that is no multiple of 4.
    behind = found[:, width:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    scale, least = behind.split(1, dim=1)
    least = torch.add(least, values.sum(1, keepdim=True), alpha=0)  # NaN for a row with NaN, which it overlooks
    return found[:, :width].contiguous(), scale, least
