"""Linear layers for CPUs that give the same sooner, put in the place of a model's own.

A model says nothing of its layers but that they are called, so what stands in their place is tried on the model's
own dummy inputs and taken back where it does not work or gives something else: an architecture that reads its
layers' weights by itself, for instance. Knows no task and no file.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workers.inference.models.outputs_match import outputs_match

logger = logging.getLogger(__name__)

#: Shape of the product that ways to compute are tried with, a layer of a small model: rows, inputs, outputs.
PROBE_SHAPE = (256, 384, 1536)
#: How much faster the other way must be to be worth its while.
_MIN_SPEEDUP = 1.15

ReplacedLayers = list[tuple[nn.Module, str, nn.Module]]  #: where, under which name, and what was there


class OneDnnLinear(nn.Module):  # type: ignore[misc]
    """A linear layer by oneDNN, in float32. Torch itself takes MKL, which is half as fast on AMD's processors."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight.contiguous().to_mkldnn())
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        # What torch's own compiler makes of a linear layer (torch/_inductor/mkldnn_lowerings.py).
        result: Tensor = torch.ops.mkldnn._linear_pointwise(values, self.weight, self.bias, "none", [], "")
        return result


class Int8Linear(nn.Module):  # type: ignore[misc]
    """A linear layer that multiplies integers; float32 goes in and comes out.

    Weights are rounded once, by output; what comes in is rounded token by token (ZeroQuant, Yao and others 2022).
    One scale for a whole batch, as torch's own `quantize_dynamic` has it, left MiniLM a cosine of 0.93 where this
    leaves 0.99.
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
    """Have the float32 layers of `model`, on a CPU, computed by oneDNN where that is faster here and gives the same."""
    if not onednn_is_faster():
        return
    replaced: ReplacedLayers = []
    try:
        with torch.inference_mode():
            expected = _dummy_output(model)
            replaced = replace_linear_layers(model, OneDnnLinear)
            if outputs_match(_dummy_output(model), expected):
                return
    except Exception:  # any architecture may be loaded, and may raise anything
        logger.debug("%s cannot be tried with other layers", type(model).__name__, exc_info=True)
    restore_layers(replaced)
    logger.info("%s keeps its own layers: others do not give the same", type(model).__name__)


def quantize_int8(model: Any) -> bool:
    """Have the layers of `model` computed in int8; return False, and leave it alone, where that cannot be done."""
    replaced: ReplacedLayers = []
    try:
        with torch.inference_mode():
            replaced = replace_linear_layers(model, Int8Linear)
            _dummy_output(model)
    except Exception:  # as above
        logger.debug("%s cannot compute in int8", type(model).__name__, exc_info=True)
        restore_layers(replaced)
        return False
    return bool(replaced)


def replace_linear_layers(model: Any, kind: Callable[[Tensor, Tensor | None], nn.Module]) -> ReplacedLayers:
    """Put a layer of another kind in the place of each linear one but the last, which can share its weights."""
    head = model.get_output_embeddings()
    found = [place for place in _linear_layers(model) if place[2] is not head]
    try:
        for parent, name, layer in found:
            weight = layer.weight.detach()
            bias = None if layer.bias is None else layer.bias.detach()
            setattr(parent, name, kind(weight.t() if isinstance(layer, Conv1D) else weight, bias))
    except Exception:
        restore_layers(found)
        raise
    return found


def restore_layers(replaced: ReplacedLayers) -> None:
    """Put the layers back."""
    for parent, name, layer in replaced:
        setattr(parent, name, layer)


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than what torch takes by itself, on this machine."""
    rows, inputs, outputs = PROBE_SHAPE
    values, layer = torch.ones(rows, inputs), nn.Linear(inputs, outputs)
    try:
        other = OneDnnLinear(layer.weight.detach(), layer.bias.detach())
        with torch.inference_mode():
            by_torch, by_onednn = best_seconds(lambda: layer(values), lambda: other(values))
        return by_torch > _MIN_SPEEDUP * by_onednn
    except (RuntimeError, AttributeError, NotImplementedError):  # a torch without oneDNN, or without this function
        return False


def best_seconds(*calls: Callable[[], object], rounds: int = 20) -> list[float]:
    """Return the seconds of each call at its best; they take turns, so that a busy machine is fair to all."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, found, strict=True):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
    return [min(seconds) for seconds in found]


def _linear_layers(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for name, child in module.named_children():
        if type(child) in (nn.Linear, Conv1D):
            yield module, name, child
        else:
            yield from _linear_layers(child)


def _dummy_output(model: Any) -> Tensor:
    """Return what the model gives for its dummy inputs."""
    output = model(**model.dummy_inputs)
    return next(value for value in output.values() if isinstance(value, Tensor))


def _quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `values` as int8, and for each row what one step is worth."""
    # Twenty times as fast here as `vector_norm` for infinity.
    scale = values.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(127)
    return (values / scale).round_().to(torch.int8), scale
