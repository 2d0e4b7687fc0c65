"""Data types: which dtype a name stands for on a device, and moving a model there in it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import nn

from common.errors import ModelError
from common.records import Json
from workers.inference.loading.cpu_layers import (
    PROBE_SHAPE,
    Int8Linear,
    quantize_int8,
    use_onednn_linear,
    widen,
)
from workers.inference.loading.decode_attention import use_decode_attention
from workers.inference.loading.float8_layers import MIN_CAPABILITY, Float8Linear, supports_float8, use_float8
from workers.inference.loading.probe import best_seconds

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INT8, FLOAT8 = "int8", "float8"
_FULL = torch.float32.itemsize
AUTO = "auto"
#: The layers that compute in fewer bits than any dtype of torch's that a model can have.
_ROUNDED: dict[str, type[nn.Module]] = {INT8: Int8Linear, FLOAT8: Float8Linear}


def resolve_dtype(value: Json, device: str, *, insists: bool = True) -> torch.dtype:
    """Return the torch dtype that weights are loaded in.

    Args:
        value: a name from `DTYPES`; `int8` on a CPU: such a model is loaded in float32 first; `float8` on CUDA: it is
            loaded in bfloat16 first; `auto`: float32 on a CPU, half precision on CUDA.
        device: `cpu`, `cuda:0`.
        insists: whether to refuse float8 on a GPU that does not have it.

    Raises:
        ModelError: `bad_param`, there is no such dtype on this device.
    """
    cuda = device.startswith("cuda")
    if value == FLOAT8 and cuda:
        if insists and not supports_float8(device):
            raise ModelError("bad_param", f"{_no_float8(device)}. Use bfloat16 or float16 there.")
        value = "bfloat16"
    elif value == AUTO and cuda:
        value = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    elif value in (AUTO, INT8) and not cuda:
        value = "float32"
    found = DTYPES.get(value) if isinstance(value, str) else None
    if found is not None:
        if not cuda:
            _warn_if_slow(str(value))
        return found
    names = ", ".join((AUTO, *DTYPES, FLOAT8 if cuda else INT8))
    raise ModelError("bad_param", f"dtype must be one of {names} on {device}, found {value!r}.")


def to_device(model: Any, value: Json, device: str, *, insists: bool = True) -> Any:
    """Return the model on its device, with its linear layers in int8 or float8, or the fastest on a CPU.

    Args:
        model: as it was loaded, in the dtype that `resolve_dtype` gave.
        value: as `resolve_dtype` takes it.
        device: `cpu`, `cuda:0`.
        insists: whether to refuse a model that has no layers for int8 or float8; else it computes in the dtype that it
            was loaded in.

    Raises:
        ModelError: `bad_param`, int8 or float8 for a model that has no layers for it.
    """
    model = model.to(device)  # first, as a GPU rounds to float8 itself
    if device == "cpu":
        use_decode_attention()
    quantize = {INT8: quantize_int8, FLOAT8: use_float8}.get(str(value))
    if value == FLOAT8 and not supports_float8(device):
        logger.warning("%s: computing in bfloat16", _no_float8(device))
    elif quantize is not None and quantize(model):
        if value == INT8:
            _warn_if_slow(INT8)
        return model
    elif quantize is not None:
        _refuse_or_warn(model, str(value), insists=insists)
    if device == "cpu":
        use_onednn_linear(model)
    return model


def _refuse_or_warn(model: Any, value: str, *, insists: bool) -> None:
    reason = f"{type(model).__name__} has no linear layers that {value} would make faster and change little"
    if insists:
        raise ModelError("bad_param", f"{reason}.")
    logger.warning("%s: computing in %s", reason, dtype_name(model))


def _no_float8(device: str) -> str:
    """Return why a GPU cannot compute in float8, without a period."""
    found, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
    least = ".".join(map(str, MIN_CAPABILITY))
    return f"dtype=float8 needs a GPU of compute capability {least} or later, found {name} with {found[0]}.{found[1]}"


def dtype_name(model: Any) -> str:
    """Return the name of the dtype that `model` computes in: `float32`, `int8`."""
    for name, kind in _ROUNDED.items():
        if any(isinstance(module, kind) for module in model.modules()):
            return name
    return str(model.dtype).removeprefix("torch.")


def is_reduced_precision(model: nn.Module) -> bool:
    """Whether `model` computes in less than float32, whatever the dtype of its outputs."""
    low = any(tensor.is_floating_point() and tensor.itemsize < _FULL for tensor in model.parameters())
    return low or any(isinstance(module, tuple(_ROUNDED.values())) for module in model.modules())


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[None]:
    """While entered, hold the floating-point weights of `model` in float32; the original ones are restored."""
    wide = {id(layer.weight): layer.widened() for layer in model.modules() if isinstance(layer, Float8Linear)}
    low = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    kept = [(tensor, tensor.data) for tensor in low if tensor.itemsize < _FULL]
    try:
        for tensor, _ in kept:
            tensor.data = wide[id(tensor)] if id(tensor) in wide else widen(tensor.data)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@cache
def _warn_if_slow(name: str) -> None:
    """Warn if a dtype is slower than float32: CPUs without instructions for it can be a hundred times slower."""
    if name == "float32":
        return
    rows, inputs, outputs = PROBE_SHAPE
    dtype = DTYPES.get(name, torch.float32)
    values, layer = torch.ones(rows, inputs), nn.Linear(inputs, outputs)
    fewer = Int8Linear(layer.weight.detach(), layer.bias.detach()) if name == INT8 else deepcopy(layer).to(dtype)
    cast = values.to(dtype)
    with torch.inference_mode():
        full, low = best_seconds(lambda: layer(values), lambda: fewer(cast), rounds=3)
    if low > full:
        logger.warning("%s is slower than float32 on this CPU (%.1f times in a probe)", name, low / full)
