"""Collation: several prepared inputs to one batch, and one row of a batch back.

Unlike `DataLoader`'s, the padding has a given side, and rows come back at their own length.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from workers.inference.text.truncation import ModelInputs

Side = Literal["left", "right"]
#: Numbers of a prepared input that count as one token of text: those of 16 by 16 pixels of an image.
VALUES_PER_TOKEN = 3 * 16 * 16


def collate(values: Sequence[ModelInputs], pad_id: int, side: Side = "right") -> ModelInputs:
    """Return one batch: tensors of shape (1, tokens, ...) padded and stacked, anything else listed.

    Padding is `pad_id` in `input_ids`, 1 in `special_tokens_mask`, 0 elsewhere (so `attention_mask` hides it).
    """
    fill = {"input_ids": pad_id, "special_tokens_mask": 1}
    return {key: _stack([value[key] for value in values], fill.get(key, 0), side) for key in values[0]}


def concatenate(values: Sequence[ModelInputs]) -> ModelInputs:
    """Return one batch of inputs of equal shapes: tensors of shape (1, ...) stacked, anything else of the first."""
    return {
        name: torch.cat([value[name] for value in values]) if isinstance(first, torch.Tensor) else first
        for name, first in values[0].items()
    }


def tensors_of(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors among some values, without scalars."""
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor) and value.dim()}


def shapes_of(values: Mapping[str, Any]) -> tuple[tuple[str, torch.Size], ...]:
    """Return the names and shapes of the tensors: inputs that have the same can be concatenated."""
    return tuple((name, value.shape) for name, value in sorted(tensors_of(values).items()))


def size_in_tokens(values: Mapping[str, Any], values_per_token: int = VALUES_PER_TOKEN) -> int:
    """Return the number of text tokens that prepared inputs count as."""
    return 1 + sum(int(value.numel()) for value in tensors_of(values).values()) // values_per_token


def take_row(value: Any, number: int, tokens: int | None = None) -> Any:
    """Return row `number` of a value, batch dimension kept; cut to `tokens` if the padding is on the right.

    Half-precision numbers become float32: numpy has no bfloat16, and scores are computed from them.
    """
    if not isinstance(value, torch.Tensor):
        return value[number] if isinstance(value, list) else value
    row = value[number : number + 1]
    if tokens is not None:
        row = row[:, :tokens]
    return row.float() if row.dtype in (torch.float16, torch.bfloat16) else row


def _stack(parts: list[Any], fill: int, side: Side) -> Any:
    if not isinstance(parts[0], torch.Tensor):
        return parts
    if parts[0].dim() < 2:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([_pad(part, width, fill, side) for part in parts])


def _pad(part: torch.Tensor, width: int, fill: int, side: Side) -> torch.Tensor:
    filler = part.new_full((part.shape[0], width - part.shape[1], *part.shape[2:]), fill)
    return torch.cat((filler, part) if side == "left" else (part, filler), dim=1)
