"""Adapters of peft in a loaded model: its own layers, changed in place, so that the model stays one of its class.

Models of several adapters over one base hold the tensors of the base once: those of a model that is loaded are kept
in mind, and another's that are equal are replaced by them.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import ModelError, first_line
from workers.inference.core.device_errors import is_out_of_memory
from workers.models.adapters import ADAPTER_WEIGHTS

#: What peft puts before the name of each weight, and around a module that an adapter replaces.
_PREFIX, _REPLACED = "base_model.model.", ("modules_to_save.default.", "modules_to_save.")
#: The layer that an adapter was added to, within the layer that has both.
_BASE_LAYER = ".base_layer"
_MISSING = "missing adapter keys"
#: Tensors of bases, by base and name, for as long as a model holds them.
_known: "WeakValueDictionary[tuple[str, str], Tensor]" = WeakValueDictionary()


def add_adapter(model: Any, directory: Path) -> Any:
    """Return the model with an adapter, as `PeftModel.from_pretrained` gives it; not merged.

    Raises:
        ModelError: `not_a_model`, it does not fit the model; `missing_weights`, it lacks some of its own.
    """
    return _peft_model(model, directory).get_base_model()


def merge_adapter(model: Any, directory: Path) -> Any:
    """Return the model with an adapter merged into its weights, to be trained on.

    Raises:
        ModelError: as `add_adapter`.
    """
    return _peft_model(model, directory).merge_and_unload().requires_grad_(True)


def supplied_weights(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the whole weights that an adapter brings, such as a head's, by their names in the model."""
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return {_plain_name(name): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError("not_a_model", f"{path} cannot be read: {first_line(error)}") from error


def head_size(config: Any, auto_class: str, supplied: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the number of classes, to replace that of the base's configuration, of a head that an adapter brings."""
    if not auto_class.endswith("Classification"):
        return {}
    heads = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
    sizes = [supplied[name][0] for name in heads if len(supplied.get(name, ())) == 2]
    return {"num_labels": sizes[0]} if sizes and sizes[0] != config.num_labels else {}


def share_weights(model: nn.Module, base: str) -> None:
    """Have a model hold the tensors that others of the same base hold already, where its own are equal.

    Args:
        model: with an adapter, on its device, with its final layers.
        base: the directory of the base, and how it was loaded.
    """
    for name, tensors, own in _tensors(model):
        tensor = tensors[own]
        known = _known.setdefault((base, name.replace(_BASE_LAYER, "")), tensor)
        if known is not tensor and _are_equal(known, tensor):
            tensors[own] = known


def _peft_model(model: Any, directory: Path) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = PeftModel.from_pretrained(model, str(directory), torch_device="cpu", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            "not_a_model",
            f"The adapter in {directory} does not fit its base, {type(model).__name__}: {first_line(error)}",
        ) from error
    missing = next((str(warning.message) for warning in caught if _MISSING in str(warning.message)), None)
    if missing:
        raise ModelError("missing_weights", f"The adapter in {directory} lacks weights: {missing}"[:1000])
    return found.eval()


def _plain_name(name: str) -> str:
    name = name.removeprefix(_PREFIX)
    for part in _REPLACED:
        name = name.replace(part, "")
    return name


def _tensors(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the name of each parameter and buffer, the dictionary of its module, and its name there."""
    for path, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            yield from ((f"{path}.{own}", tensors, own) for own in list(tensors) if tensors[own] is not None)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    if type(one) is not type(other) or _kind(one) != _kind(other):
        return False
    if one.is_mkldnn:
        one, other = one.to_dense(), other.to_dense()
    return bool(torch.equal(one, other))


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout, tensor.is_mkldnn
