"""What goes into a model's linear layers and activations, and what comes out, while it runs once."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

#: A module, with its parent and its name there.
Child = tuple[nn.Module, str, nn.Module]


class LayerTrace:
    """The inputs and outputs of layers, by identity: tensors are held, so that their ids stay unique."""

    def __init__(self) -> None:
        self._calls: Counter[nn.Module] = Counter()
        self._inputs: defaultdict[nn.Module, list[int]] = defaultdict(list)  # ids of the tensors of each call
        self._outputs: dict[int, nn.Module] = {}  # the layer that made a tensor, by the tensor's id
        self._pairs: Counter[tuple[nn.Module, nn.Module]] = Counter()  # how often an activation followed a layer
        self._held: list[Any] = []

    def followed_by(self) -> dict[nn.Module, nn.Module]:
        """Return the activation behind each layer whose outputs all went into the same one, if it had no others."""
        uses = Counter[nn.Module]()
        for (_, activation), count in self._pairs.items():
            uses[activation] += count
        return {
            layer: activation
            for (layer, activation), count in self._pairs.items()
            if count == self._calls[layer] and uses[activation] == self._calls[activation]
        }

    def with_one_input(self, children: Iterable[Child]) -> list[list[nn.Module]]:
        """Return the groups of two or more layers of one parent that took the same tensor at each call."""
        groups: defaultdict[tuple[nn.Module, tuple[int, ...]], dict[nn.Module, None]] = defaultdict(dict)
        seen: set[nn.Module] = set()
        for parent, _, layer in children:
            if self._calls[layer] and layer not in seen:  # one that has two parents belongs to the first
                seen.add(layer)
                groups[parent, tuple(self._inputs[layer])][layer] = None
        return [list(layers) for layers in groups.values() if len(layers) > 1]

    def note_layer(self, layer: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        """Note a call of a layer: a forward hook."""
        self._calls[layer] += 1
        self._inputs[layer].append(id(inputs[0]) if inputs else 0)
        self._outputs[id(output)] = layer
        self._held += [*inputs, output]

    def note_activation(self, activation: nn.Module, inputs: Sequence[Any]) -> None:
        """Note a call of an activation: a forward pre-hook."""
        self._calls[activation] += 1
        if inputs and id(inputs[0]) in self._outputs:
            self._pairs[self._outputs[id(inputs[0])], activation] += 1


@contextmanager
def traced(layers: Iterable[Child], activations: Iterable[Child]) -> Iterator[LayerTrace]:
    """Yield a trace of these modules' calls in the block."""
    trace = LayerTrace()
    hooks: list[Callable[[], None]] = []
    hooks += [layer.register_forward_hook(trace.note_layer).remove for _, _, layer in layers]
    hooks += [one.register_forward_pre_hook(trace.note_activation).remove for _, _, one in activations]
    try:
        yield trace
    finally:
        for remove in hooks:
            remove()
