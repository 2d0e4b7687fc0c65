"""Linear layers of a model, replaced by others that compute them faster.

Replaced layers are tried on the model's dummy inputs, and restored if the model fails or its outputs differ, such
as an architecture that reads its layers' weights itself.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation
from transformers.pytorch_utils import Conv1D

from workers.inference.core.device_errors import is_device_lost, is_out_of_memory
from workers.inference.core.fallbacks import count_fallback
from workers.inference.loading.layer_trace import Child, LayerTrace, traced
from workers.inference.loading.outputs_match import dummy_output, expected_output
from workers.inference.loading.shared_product import SharedLinear, SharedProduct

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


class Attempt(NamedTuple):
    """A way to replace layers."""

    fuse: bool  #: whether the new layers take over the activations that follow them
    share: bool  #: whether layers that take the same input become one product


FUSED_AND_SHARED, FUSED, PLAIN = Attempt(True, True), Attempt(True, False), Attempt(False, False)


def replace_layers(
    model: Any,
    kind: Callable[..., nn.Module],
    *,
    name: str,
    agrees: Callable[[Tensor, Tensor], bool],
    head: Callable[[Tensor, Tensor | None], nn.Module] | None = None,
    suits: Callable[[Tensor], bool] = lambda _: True,
    attempts: Sequence[Attempt] = (PLAIN,),
) -> bool:
    """Replace each linear layer by one of another kind.

    The output layer keeps its weight, which can be that of the embeddings, as it is; it is not rounded.

    Args:
        model: changed in place, and restored if the new layers fail or the outputs differ.
        kind: makes a layer of weight, (outputs, inputs), bias and, to fuse, activation.
        name: of the fallback that is counted if the last attempt fails.
        agrees: whether the output of the new layers, the first argument, is close enough to that of the old ones.
        head: makes the output layer of its weight and bias; None leaves it.
        suits: whether to replace a layer with this weight.
        attempts: what to try, until one agrees.

    Returns:
        Whether any layer was replaced.
    """
    layers, activations = list(_children(model, nn.Linear, Conv1D)), list(_children(model, *FUSED_ACTIVATIONS))
    with traced(layers, activations) as trace:
        expected = expected_output(model)
    if expected is None:
        return False
    for attempt in attempts:
        changed = _Replacements()
        try:
            output = model.get_output_embeddings()
            inner = [child for child in layers if child[2] is not output and suits(_weights(child[2])[0])]
            new = _new_layers(inner, trace, kind, attempt)
            if head is not None:
                new |= {layer: head(*_weights(layer)) for _, _, layer in layers if layer is output}
            for parent, attribute, module in (*layers, *activations):
                if module in new:
                    changed.replace(parent, attribute, new[module])
            if agrees(dummy_output(model), expected):
                return changed.any
        except Exception as error:  # any architecture may be loaded, and may raise anything
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            logger.debug("%s fails with %s, %s", type(model).__name__, kind, attempt, exc_info=True)
            if attempt == attempts[-1]:
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


def _new_layers(
    layers: Sequence[Child], trace: LayerTrace, kind: Callable[..., nn.Module], attempt: Attempt
) -> dict[nn.Module, nn.Module]:
    """Return what replaces each of these layers, and the activations that become part of them."""
    followed_by = trace.followed_by() if attempt.fuse else {}
    plain = [child for child in layers if child[2] not in followed_by]
    new = _shared(trace.with_one_input(plain), kind) if attempt.share else {}
    for _, _, layer in layers:
        if layer in followed_by:
            new[layer] = kind(*_weights(layer), FUSED_ACTIVATIONS[type(followed_by[layer])])
            new[followed_by[layer]] = nn.Identity()
        elif layer not in new:
            new[layer] = kind(*_weights(layer))
    return new


def _shared(groups: Sequence[Sequence[nn.Module]], kind: Callable[..., nn.Module]) -> dict[nn.Module, nn.Module]:
    """Return what replaces each layer of these groups, whose layers take the same input."""
    new: dict[nn.Module, nn.Module] = {}
    for layers in groups:
        weights, biases = zip(*map(_weights, layers), strict=True)
        filled = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
        joined = kind(torch.cat(weights), torch.cat(filled) if any(b is not None for b in biases) else None)
        product = SharedProduct(joined, [len(weight) for weight in weights])
        new |= {layer: SharedLinear(joined, product, position) for position, layer in enumerate(layers)}
    return new


def _weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Return the weight of a layer, (outputs, inputs), and its bias."""
    weight = layer.weight.detach()
    return weight.t() if isinstance(layer, Conv1D) else weight, None if layer.bias is None else layer.bias.detach()


def _children(module: nn.Module, *kinds: type[nn.Module]) -> Iterator[Child]:
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
