"""Faster linear layers for CPUs: drop-in replacements by oneDNN, and int8 quantization.

`OneDnnLinear` becomes obsolete once torch's own `nn.Linear` is as fast (`onednn_is_faster` is then False), `Int8Linear`
once torch quantizes inputs by token (`quantize_dynamic` of 2.x has one scale for a batch).
"""

import logging
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from workers.inference.loading.linear_layers import replace_layers
from workers.inference.loading.outputs_match import outputs_match

logger = logging.getLogger(__name__)

#: Shape of the product that is timed, a layer of a small model: rows, inputs, outputs.
PROBE_SHAPE = (256, 384, 1536)
#: How much faster a replacement must be to be used.
_MIN_SPEEDUP = 1.05


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

    Weights are quantized once, per output; inputs per token (ZeroQuant, Yao et al. 2022). One scale for a whole batch,
    as in torch's `quantize_dynamic`, gave MiniLM's embeddings a cosine of 0.93 to the original; this gives 0.99.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        rounded, scale = _quantize_rows(weight)
        self._packed = onednn_multiplies_int8()
        self.register_buffer("weight", _pack_int8(rounded) if self._packed else rounded)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("zeros", torch.zeros(self.out_features, dtype=torch.int64) if self._packed else None)
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        rows, scale = _quantize_rows(values.reshape(-1, self.in_features))
        if self._packed:
            result = _multiply_int8(rows, self.weight, self.scale, self.zeros)
        else:
            result = torch._int_mm(rows, self.weight.t()).float().mul_(self.scale)
        result = result.mul_(scale) if self.bias is None else torch.addcmul(self.bias, result, scale)
        return result.view(*values.shape[:-1], self.out_features)


def use_onednn_linear(model: Any) -> None:
    """Compute the linear layers of `model`, on a CPU, by oneDNN if that is faster here and gives the same.

    Activations are computed with the layers before them, if that gives the same too.
    """
    if not onednn_is_faster(model.dtype):
        return
    replace = partial(replace_layers, model, OneDnnLinear, name="cpu_layers", agrees=outputs_match)
    if not any(replace(head=partial(OneDnnLinear, pack=False), fuse=fuse) for fuse in (True, False)):
        logger.info("%s keeps its own linear layers: outputs with oneDNN differ", type(model).__name__)


def quantize_int8(model: Any) -> bool:
    """Compute the linear layers of `model` in int8; return False, and leave it unchanged, if that fails."""
    return replace_layers(model, Int8Linear, name="cpu_layers", agrees=lambda *_: True)


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
    rows, inputs, outputs = PROBE_SHAPE
    values, weight = (
        torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((rows, inputs), (outputs, inputs))
    )
    scale, zeros = torch.rand(outputs), torch.zeros(outputs, dtype=torch.int64)
    try:
        packed = _pack_int8(weight)
        with torch.inference_mode():
            if not torch.equal(
                _multiply_int8(values, packed, scale, zeros), torch._int_mm(values, weight.t()).float().mul_(scale)
            ):
                return False
            by_torch, by_onednn = best_seconds(
                lambda: torch._int_mm(values, weight.t()).float().mul_(scale),
                lambda: _multiply_int8(values, packed, scale, zeros),
            )
        return by_torch > by_onednn
    except (RuntimeError, AttributeError, NotImplementedError):  # a torch without oneDNN, or without this operator
        return False


def widen(weight: Tensor) -> Tensor:
    """Return a tensor in float32; the weight of an `OneDnnLinear` in oneDNN's layout."""
    return _pack(weight.to_dense().float()) if weight.is_mkldnn else weight.float()


def best_seconds(*calls: Callable[[], object], rounds: int = 20) -> list[float]:
    """Return the best time of each call in seconds; they are interleaved, so that a busy machine slows all alike."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, found, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in found]


def _pack(weight: Tensor) -> Tensor:
    """Return (outputs, inputs) in the layout of oneDNN's kernels, for any number of rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def _pack_int8(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def _multiply_int8(rows: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """Return the product of int8 rows and packed weights, each output times its scale, in float32.

    The rows become uint8 with the zero point 128: most processors multiply uint8 by int8, but not int8 by int8.
    """
    unsigned = rows.view(torch.uint8) ^ 128
    # What torch's own compiler emits for a quantized layer (torch/_inductor/mkldnn_lowerings.py).
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `values` as int8, and the scale of each row."""
    # Twenty times as fast as `vector_norm` for infinity.
    scale = values.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(127)
    return (values / scale).round_().to(torch.int8), scale
