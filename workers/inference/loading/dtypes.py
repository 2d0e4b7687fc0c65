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
    best_seconds,
    quantize_int8,
    use_onednn_linear,
    widen,
)

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INT8 = "int8"
_FULL = torch.float32.itemsize
AUTO = "auto"


def resolve_dtype(value: Json, device: str) -> torch.dtype:
    """Return the torch dtype that weights are loaded in.

    Args:
        value: a name from `DTYPES`; `int8` on a CPU: such a model is loaded in float32 first; `auto`: float32 on
             a CPU, half precision on CUDA.
        device: `cpu`, `cuda:0`.

    Raises:
        ModelError: `bad_param`, there is no such dtype on this device.
    """
    cuda = device.startswith("cuda")
    if value == AUTO and cuda:
        value = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    elif value in (AUTO, INT8) and not cuda:
        value = "float32"
    found = DTYPES.get(value) if isinstance(value, str) else None
    if found is not None:
        if not cuda:
            _warn_if_slow(str(value))
        return found
    names = ", ".join((AUTO, *DTYPES) if cuda else (AUTO, *DTYPES, INT8))
    raise ModelError("bad_param", f"dtype must be one of {names} on {device}, found {value!r}.")


def to_device(model: Any, value: Json, device: str, *, insists: bool = True) -> Any:
    """Return the model on its device; on a CPU, with the fastest linear layers.

    Args:
        model: as it was loaded, in the dtype that `resolve_dtype` gave.
        value: as `resolve_dtype` takes it.
        device: `cpu`, `cuda:0`.
        insists: whether to refuse a model that has no layers for int8; else it computes in float32.

    Raises:
        ModelError: `bad_param`, int8 for a model that has no layers for it.
    """
    rounded = value == INT8 and quantize_int8(model)
    if rounded:
        _warn_if_slow(INT8)
    elif value == INT8:
        reason = f"{type(model).__name__} has no linear layers that int8 would make faster"
        if insists:
            raise ModelError("bad_param", f"{reason}.")
        logger.warning("%s: computing in float32", reason)
    if not rounded and device == "cpu":
        use_onednn_linear(model)
    return model.to(device)


def dtype_name(model: Any) -> str:
    """Return the name of the dtype that `model` computes in: `float32`, `int8`."""
    return INT8 if _computes_in_int8(model) else str(model.dtype).removeprefix("torch.")


def is_reduced_precision(model: nn.Module) -> bool:
    """Whether `model` computes in less than float32, whatever the dtype of its outputs."""
    low = any(tensor.is_floating_point() and tensor.itemsize < _FULL for tensor in model.parameters())
    return low or _computes_in_int8(model)


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[None]:
    """While entered, hold the floating-point weights of `model` in float32; the original ones are restored."""
    low = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    kept = [(tensor, tensor.data) for tensor in low if tensor.itemsize < _FULL]
    try:
        for tensor, _ in kept:
            tensor.data = widen(tensor.data)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def _computes_in_int8(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in model.modules())


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
