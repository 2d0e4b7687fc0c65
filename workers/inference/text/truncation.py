"""Truncation: how long an input may be, and what is kept of a longer one.

Prepared inputs are mappings of tensors whose second dimension is the tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch

from common.errors import RecordError

#: Tokenizers without a limit have one like 1e30.
_UNLIMITED = 10**9
#: Names of the number of positions in configurations; the second is for speech decoders.
_POSITIONS = ("max_position_embeddings", "max_target_positions")
ModelInputs = dict[str, Any]


def input_token_limit(model: Any, tokenizer: Any) -> int | None:
    """Return how many tokens the model takes, special ones included; None for no limit.

    The smallest of the tokenizer's `model_max_length`, the configuration's number of positions, and the
    rows of the table of positions. In the RoBERTa family the rows up to the padding index are not positions:
    its 514 rows take 512 tokens (transformers, `RobertaEmbeddings`).
    """
    config = model.config.get_text_config()
    limits = [getattr(tokenizer, "model_max_length", None), *(getattr(config, name, None) for name in _POSITIONS)]
    for name, module in model.named_modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if name.endswith("position_embeddings") and padding is not None and table is not None:
            limits.append(len(table) - padding - 1)
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _UNLIMITED]
    return min(known, default=None)


def configured_token_limit(max_tokens: int | None, model: Any, tokenizer: Any) -> int | None:
    """Return how many tokens the model takes if its configuration says where texts are truncated, None if it does not.

    The setting replaces that of the tokenizer, and the model's positions bound both.
    """
    if max_tokens is None:
        return input_token_limit(model, tokenizer)
    positions = input_token_limit(model, tokenizer=None)
    return max_tokens if positions is None else min(max_tokens, positions)


def token_count(inputs: ModelInputs) -> int:
    """Return the number of tokens of one prepared input."""
    return int(inputs["input_ids"].shape[1])


def truncate_pair(sequences: Sequence[int | None], limit: int, side: str) -> list[int]:
    """Return the positions kept of a tokenized pair that is longer than `limit`.

    The same as the tokenizers library keeps by "longest_first". The library also pairs all pieces that it cuts off with
    each other: gigabytes for two long texts (tokenizers#2035).

    Args:
        sequences: for each token, 0 for the first text, 1 for the second, None for a special token.
        limit: tokens to keep.
        side: the side that is cut off, "right" or "left".
    """
    texts = [[position for position, text in enumerate(sequences) if text == number] for number in (0, 1)]
    available = max(0, limit - (len(sequences) - len(texts[0]) - len(texts[1])))
    short, long = sorted(texts, key=len)  # stable: of two equal lengths, the first counts as the shorter
    if len(short) + max(len(short), available - len(short)) > available:
        lengths = available // 2, available - available // 2
    else:
        lengths = len(short), available - len(short)
    cut = {
        position
        for text, length in zip((short, long), lengths, strict=True)
        for position in _beyond(text, length, side)
    }
    return [position for position in range(len(sequences)) if position not in cut]


def _beyond(positions: list[int], length: int, side: str) -> list[int]:
    return positions[length:] if side == "right" else positions[: max(0, len(positions) - length)]


def truncate_around_masks(inputs: ModelInputs, limit: int, body: list[int], mask_id: int) -> ModelInputs:
    """Return `limit` tokens of `inputs` around the masks, with the special tokens at both ends.

    Args:
        inputs: one prepared input (tensors of shape (1, tokens)).
        limit: tokens to keep.
        body: the token ids without the special tokens.
        mask_id: the id of the mask token.

    Raises:
        RecordError: `too_long`, the masks are further apart than the model's length.
    """
    ids = inputs["input_ids"][0].tolist()
    before = next((n for n in range(len(ids) - len(body) + 1) if ids[n : n + len(body)] == body), 0)
    after = len(ids) - before - len(body)
    available = limit - before - after
    masks = [position for position, token in enumerate(body) if token == mask_id]
    span = masks[-1] - masks[0] + 1
    if span > available:
        raise RecordError(
            "too_long",
            f"The masks are {span} tokens apart; the model takes {available} at a time. Split the text between them.",
        )
    middle = (masks[0] + masks[-1]) // 2
    start = before + min(max(0, middle - available // 2), len(body) - available)
    return _pieces(inputs, (0, before), (start, start + available), (len(ids) - after, len(ids)))


def truncate_left(inputs: ModelInputs, limit: int, first_id: int | None) -> ModelInputs:
    """Return the last `limit` tokens of `inputs`; a leading `first_id` (beginning of text) is kept in front."""
    total = token_count(inputs)
    first = int(limit > 1 and first_id is not None and inputs["input_ids"][0, 0].item() == first_id)
    return _pieces(inputs, (0, first), (total - limit + first, total))


def _pieces(inputs: ModelInputs, *spans: tuple[int, int]) -> ModelInputs:
    total = token_count(inputs)
    return {
        key: torch.cat([value[:, start:end] for start, end in spans], dim=1)
        if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[1] == total
        else value
        for key, value in inputs.items()
    }
