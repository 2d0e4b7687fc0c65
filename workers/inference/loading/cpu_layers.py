"""Faster linear layers for CPUs: drop-in replacements by oneDNN, and int8 quantization.

Replaced layers are tried on the model's dummy inputs, and restored if the model fails or its outputs differ, such
as an architecture that reads its layers' weights itself.

`OneDnnLinear` becomes obsolete once torch's own float32 `nn.Linear` is as fast on AMD processors (`onednn_is_faster` is
then False), `Int8Linear` once torch quantizes inputs by token (`quantize_dynamic` of 2.x has one scale for a batch).
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workers.inference.core.fallbacks import count_fallback
from workers.inference.loading.outputs_match import outputs_match

logger = logging.getLogger(__name__)

#: Shape of the product that is timed, a layer of a small model: rows, inputs, outputs.
PROBE_SHAPE = (256, 384, 1536)
#: How much faster a replacement must be to be used.
_MIN_SPEEDUP = 1.15


class OneDnnLinear(nn.Module):  # type: ignore[misc]
    """A linear layer by oneDNN, in float32. Torch takes MKL, which is half as fast on AMD processors."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight.contiguous().to_mkldnn())
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        # What torch's own compiler emits for a linear layer (torch/_inductor/mkldnn_lowerings.py).
        result: Tensor = torch.ops.mkldnn._linear_pointwise(values, self.weight, self.bias, "none", [], "")
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
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        rows, scale = _quantize_rows(values.reshape(-1, self.in_features))
        result = torch._int_mm(rows, self.weight.t()).float().mul_(scale)
        result = result.mul_(self.scale) if self.bias is None else torch.addcmul(self.bias, result, self.scale)
        return result.view(*values.shape[:-1], self.out_features)


def use_onednn_linear(model: Any) -> None:
    """Compute the float32 linear layers of `model`, on a CPU, by oneDNN if that is faster here and gives the same."""
    if onednn_is_faster() and not _replace_layers(model, OneDnnLinear, exact=True):
        logger.info("%s keeps its own linear layers: outputs with oneDNN differ", type(model).__name__)


def quantize_int8(model: Any) -> bool:
    """Compute the linear layers of `model` in int8; return False, and leave it unchanged, if that fails."""
    return _replace_layers(model, Int8Linear, exact=False)


def _replace_layers(model: Any, kind: Callable[[Tensor, Tensor | None], nn.Module], *, exact: bool) -> bool:
    """Replace each linear layer by one of another kind, except the output layer, which can share its weights.

    Args:
        model: changed in place, and restored if the new layers fail or the outputs differ.
        kind: makes a layer of weight and bias.
        exact: whether the model's output must stay the same.

    Returns:
        Whether any layer was replaced.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []  # parent module, attribute name, original layer
    try:
        head = model.get_output_embeddings()
        with torch.inference_mode():
            expected = _dummy_output(model)
            for parent, name, layer in list(_linear_layers(model)):
                if layer is not head:
                    weight = layer.weight.detach()
                    bias = None if layer.bias is None else layer.bias.detach()
                    setattr(parent, name, kind(weight.t() if isinstance(layer, Conv1D) else weight, bias))
                    replaced.append((parent, name, layer))
            found = _dummy_output(model)
            if not exact or outputs_match(found, expected):
                return bool(replaced)
    except Exception as error:  # any architecture may be loaded, and may raise anything
        logger.debug("%s fails with %s", type(model).__name__, kind, exc_info=True)
        count_fallback("cpu_layers", error)
    for parent, name, layer in replaced:
        setattr(parent, name, layer)
    return False


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than torch's default, on this machine."""
    rows, inputs, outputs = PROBE_SHAPE
    values, layer = torch.ones(rows, inputs), nn.Linear(inputs, outputs)
    try:
        onednn = OneDnnLinear(layer.weight.detach(), layer.bias.detach())
        with torch.inference_mode():
            by_torch, by_onednn = best_seconds(lambda: layer(values), lambda: onednn(values))
        return by_torch > _MIN_SPEEDUP * by_onednn
    except (RuntimeError, AttributeError, NotImplementedError):  # a torch without oneDNN, or without this operator
        return False


def best_seconds(*calls: Callable[[], object], rounds: int = 20) -> list[float]:
    """Return the best time of each call in seconds; they are interleaved, so that a busy machine slows all alike."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, found, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in found]


def _linear_layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for name, child in module.named_children():
        if type(child) in (nn.Linear, Conv1D):
            yield module, name, child
        else:
            yield from _linear_layers(child)


def _dummy_output(model: Any) -> Tensor:
    """Return the model's first output for its dummy inputs."""
    output = model(**model.dummy_inputs)
    return next(value for value in output.values() if isinstance(value, Tensor))


def _quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `values` as int8, and the scale of each row."""
    # Twenty times as fast as `vector_norm` for infinity.
    scale = values.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(127)
    return (values / scale).round_().to(torch.int8), scale
