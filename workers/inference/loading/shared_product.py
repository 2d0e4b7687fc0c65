"""One product for all linear layers that take the same input, such as those of query, key and value.

It is faster than one for each, most of all for a few rows, and an input that is quantized is quantized once.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class SharedProduct:
    """The outputs of several layers for the last input, until each of them took its part.

    Not for several threads.

    Args:
        layer: computes the outputs of all, one behind the other.
        sizes: number of outputs of each.
    """

    def __init__(self, layer: Callable[[Tensor], Tensor], sizes: Sequence[int]) -> None:
        self._layer = layer
        self._sizes = list(sizes)
        self._input: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    def part(self, position: int, values: Tensor) -> Tensor:
        """Return the outputs, (..., size), of the layer at this position for (..., inputs)."""
        if values is not self._input or position not in self._parts:
            self._input, self._parts = None, {}  # so that nothing is left if memory runs out
            self._parts = dict(enumerate(self._layer(values).split(self._sizes, dim=-1)))
            self._input = values
        part = self._parts.pop(position)
        if not self._parts:
            self._input = None
        return part


class SharedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer whose output is a part of a shared product.

    Args:
        layer: of the shared product; the weights of all parts.
        product: by that layer.
        position: of this layer among the parts.
    """

    def __init__(self, layer: nn.Module, product: SharedProduct, position: int) -> None:
        super().__init__()
        self.shared = layer
        self._product = product
        self._position = position

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        return self._product.part(self._position, values)
