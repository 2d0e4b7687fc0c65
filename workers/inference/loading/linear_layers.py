"""Linear layers of a model, replaced by others that compute them faster.

Replaced layers are tried on the model's dummy inputs, and restored if the model fails or its outputs differ, such
as an architecture that reads its layers' weights itself.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation
from transformers.pytorch_utils import Conv1D

from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.fallbacks import count_fallback

logger = logging.getLogger(__name__)

#: Activations that oneDNN applies to a product: its name and algorithm for each
#: (torch/_inductor/fx_passes/mkldnn_fusion.py). GPT-2's `gelu_new` is eight passes over memory in transformers.
FUSED_ACTIVATIONS: dict[type[nn.Module], tuple[str, str]] = {
    GELUActivation: ("gelu", "none"),
    GELUTanh: ("gelu", "tanh"),
    NewGELUActivation: ("gelu", "tanh"),
    SiLUActivation: ("swish", ""),
    nn.SiLU: ("swish", ""),
    nn.ReLU: ("relu", ""),
}


def replace_layers(
    model: Any,
    kind: Callable[..., nn.Module],
    *,
    name: str,
    agrees: Callable[[Tensor, Tensor], bool],
    head: Callable[[Tensor, Tensor | None], nn.Module] | None = None,
    suits: Callable[[Tensor], bool] = lambda _: True,
    fuse: bool = False,
) -> bool:
    """Replace each linear layer by one of another kind.

    The output layer keeps its weight, which can be that of the embeddings, as it is; it is not rounded.

    Args:
        model: changed in place, and restored if the new layers fail or the outputs differ.
        kind: makes a layer of weight, (outputs, inputs), bias and, to fuse, activation.
        name: of the fallback that is counted if the new layers fail.
        agrees: whether the output of the new layers, the first argument, is close enough to that of the old ones.
        head: makes the output layer of its weight and bias; None leaves it.
        suits: whether to replace a layer with this weight.
        fuse: whether the new layers take over the activations that follow them.

    Returns:
        Whether any layer was replaced.
    """
    changed = _Replacements()
    try:
        output = model.get_output_embeddings()
        with _traced(model) as followed_by:
            expected = _dummy_output(model)
        activations = followed_by() if fuse else {}
        for parent, attribute, layer in list(_children(model, nn.Linear, Conv1D)):
            weight, bias = _weights(layer)
            fused = [FUSED_ACTIVATIONS[type(activations[layer])]] if layer in activations else []
            if layer is output and head is not None:
                changed.replace(parent, attribute, head(weight, bias))
            elif layer is not output and suits(weight):
                changed.replace(parent, attribute, kind(weight, bias, *fused))
        for parent, attribute, activation in list(_children(model, *FUSED_ACTIVATIONS)):
            if activation in activations.values():
                changed.replace(parent, attribute, nn.Identity())
        if agrees(_dummy_output(model), expected):
            return changed.any
    except Exception as error:  # any architecture may be loaded, and may raise anything
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        logger.debug("%s fails with %s", type(model).__name__, kind, exc_info=True)
        count_fallback(name, error)
    changed.undo()
    return False


class _Replacements:
    """Modules that were replaced by others."""

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []  # parent module, attribute name, original module

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._replaced)

    def replace(self, parent: nn.Module, attribute: str, module: nn.Module) -> None:
        """Put a module in the place of another."""
        self._replaced.append((parent, attribute, getattr(parent, attribute)))
        setattr(parent, attribute, module)

    def undo(self) -> None:
        """Put the original modules back."""
        for parent, attribute, module in self._replaced:
            setattr(parent, attribute, module)


@contextmanager
def _traced(model: nn.Module) -> Iterator[Callable[[], dict[nn.Module, nn.Module]]]:
    """Watch the calls of `model` in the block; yield a function that returns the layers followed by an activation.

    It returns those whose outputs went into the same activation at each call, if that had no other inputs.
    """
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # by id; holding them keeps the ids unique
    calls: Counter[nn.Module] = Counter()
    pairs: Counter[tuple[nn.Module, nn.Module]] = Counter()

    def note_output(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] += 1
        outputs[id(output)] = layer, output

    def note_input(activation: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[activation] += 1
        if inputs and id(inputs[0]) in outputs:
            pairs[outputs[id(inputs[0])][0], activation] += 1

    hooks = [layer.register_forward_hook(note_output) for _, _, layer in _children(model, nn.Linear, Conv1D)]
    hooks += [act.register_forward_pre_hook(note_input) for _, _, act in _children(model, *FUSED_ACTIVATIONS)]
    try:
        yield lambda: {
            layer: activation
            for (layer, activation), count in pairs.items()
            if count == calls[layer]
            and calls[activation] == sum(n for (_, act), n in pairs.items() if act is activation)
        }
    finally:
        for hook in hooks:
            hook.remove()


def _weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Return the weight of a layer, (outputs, inputs), and its bias."""
    weight = layer.weight.detach()
    return weight.t() if isinstance(layer, Conv1D) else weight, None if layer.bias is None else layer.bias.detach()


def _children(module: nn.Module, *kinds: type[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield the modules of these very types below `module`, each with its parent and name there.

    An adapter's own layers are left out: peft casts what goes into them to the dtype of their weights.
    """
    adapted = hasattr(module, "base_layer")
    for name, child in module.named_children():
        if adapted and name != "base_layer":
            continue
        if type(child) in kinds:
            yield module, name, child
        else:
            yield from _children(child, *kinds)


def _dummy_output(model: Any) -> Tensor:
    """Return the model's first output for its dummy inputs."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        inputs = {
            k: value.to(device) if isinstance(value, Tensor) else value for k, value in model.dummy_inputs.items()
        }
        output = model(**inputs)
    return next(value for value in output.values() if isinstance(value, Tensor))
