"""A cache of keys and values whose rows join and leave while texts are generated.

Rows are aligned on the right, like prompts with left padding: all write their next token to the same column. The cache
is allocated once; transformers' `DynamicCache` copies all that it holds at every token.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _RowLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of one layer, of shape (rows, heads, columns, width); the model sees a part of them."""

    def __init__(self, like: DynamicLayer, rows: int, columns: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = like.keys.dtype, like.keys.device, True
        # Zeros, as memory that was never written could hold NaN, which no attention mask hides.
        self._whole = [part.new_zeros(rows, part.shape[1], columns, part.shape[3]) for part in (like.keys, like.values)]
        self._seen = (0, 0, 0)

    def show(self, rows: int, begin: int, end: int) -> None:
        """Let the model see these columns of the first `rows` rows."""
        self._seen = rows, begin, end
        self.keys, self.values = (part[:rows, :, begin:end] for part in self._whole)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append one column; return all that is seen then."""
        rows, begin, end = self._seen
        for part, states in zip(self._whole, (key_states, value_states), strict=True):
            part[:rows, :, end : end + 1] = states
        self.show(rows, begin, end + 1)
        return self.keys, self.values

    def write(self, row: int, end: int, other: DynamicLayer) -> None:
        """Write the states of `other` to rows from `row` on, up to the column `end`, and zeros before them."""
        for part, states in zip(self._whole, (other.keys, other.values), strict=True):
            rows, begin = slice(row, row + len(states)), end - states.shape[2]
            part[rows, :, :begin] = 0
            part[rows, :, begin:end] = states

    def copy_row(self, source: int, target: int, columns: slice) -> None:
        """Overwrite these columns of one row by those of another."""
        for part in self._whole:
            part[target, :, columns] = part[source, :, columns]

    def move_left(self, rows: int, columns: slice) -> None:
        """Move these columns of the first `rows` rows to the beginning."""
        for part in self._whole:
            part[:rows, :, : columns.stop - columns.start] = part[:rows, :, columns].clone()


class RowCache:
    """The cache of a batch whose rows change.

    Args:
        like: a cache with the model's layers, each a `DynamicLayer` with states.
        rows: how many it can hold.
        columns: more than the tokens of the longest row.
    """

    def __init__(self, like: Cache, rows: int, columns: int) -> None:
        self._layers = [_RowLayer(layer, rows, columns) for layer in like.layers]
        self.states = Cache(layers=self._layers)  #: what the model takes
        self._rows, self._columns = rows, columns
        self._starts: list[int] = []  # of each row, the column of its first token
        self._end = 0  # the column of the next token

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def free(self) -> int:
        """How many more rows it can hold."""
        return self._rows - len(self)

    def join(self, prefilled: Cache, lengths: Sequence[int]) -> None:
        """Add rows.

        Args:
            prefilled: their states, padded on the left; none longer than the rows that are here already.
            lengths: tokens of each.
        """
        if not self._starts:
            self._end = prefilled.get_seq_length()
        for layer, other in zip(self._layers, prefilled.layers, strict=True):
            layer.write(len(self), self._end, other)
        self._starts += [self._end - length for length in lengths]

    def keep(self, kept: Sequence[bool]) -> list[int]:
        """Remove the rows that are not kept; return for each row that is left where it was."""
        stay = [row for row, keep in enumerate(kept) if keep]
        order = list(range(len(stay)))
        gone = [row for row in order if not kept[row]]
        columns = slice(min(self._starts), self._end)
        for target, source in zip(gone, stay[len(stay) - len(gone) :], strict=True):  # the last ones fill the gaps
            order[target] = source
            for layer in self._layers:
                layer.copy_row(source, target, columns)
        self._starts = [self._starts[row] for row in order]
        return order

    def next_column(self) -> tuple[Tensor, Tensor]:
        """Prepare for one more token in each row.

        Returns:
            The attention mask, (rows, columns), and the positions of the tokens, (rows, 1).
        """
        begin = min(self._starts)
        if self._end == self._columns:
            for layer in self._layers:
                layer.move_left(len(self), slice(begin, self._end))
            self._starts = [start - begin for start in self._starts]
            self._end -= begin
            begin = 0
        for layer in self._layers:
            layer.show(len(self), begin, self._end)
        starts = torch.tensor(self._starts)[:, None]
        mask = (torch.arange(begin, self._end + 1) >= starts).long()
        positions = self._end - starts
        self._end += 1
        return mask, positions
