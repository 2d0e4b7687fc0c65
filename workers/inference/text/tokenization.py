"""Tokenization: checks untrusted texts, tokenizes a whole chunk at once, and pads batches.

Padding is always on the right, whatever the tokenizer's setting: a batch then gives what its texts give one by one,
also for models that count positions from the first token.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import normalizers

from common.errors import RecordError
from common.records import Failure, Json, Outcome
from workers.inference.core.batches import Item
from workers.inference.text.truncation import truncate_pair

T = TypeVar("T")
#: A text, or one with its pair.
TextOrPair = str | tuple[str, str | None]
#: The numbers of a text's tokens, by the names of the model's arguments, each array as long as the text.
TokenFeatures = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One tokenized text."""

    features: TokenFeatures
    truncated: bool
    encoding: Any = None  #: a tokenizers.Encoding, from a fast tokenizer: from tokens to words and characters

    def __len__(self) -> int:
        return len(self.features["input_ids"])


#: The failure of a text without tokens: a model would process padding alone, or nothing at all.
NO_TOKENS = Failure("empty_text", "The tokenizer finds no token in the text.")


def check_text(value: Json, what: str = "the input") -> str:
    """Return `value` if it is a text that a tokenizer takes, and not blank.

    Raises:
        RecordError: `wrong_type`, `empty_text` or `bad_text`.
    """
    if not isinstance(value, str):
        raise RecordError("wrong_type", f"Expected {what} to be text, found {type(value).__name__}.")
    if not value or value.isspace():
        raise RecordError("empty_text", f"Expected {what} to be text, found only whitespace.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            "bad_text", f"Expected {what} to be Unicode text, found half a surrogate pair at {error.start}."
        ) from error
    return value


def check_texts(value: Json, name: str) -> list[str]:
    """Return `value` if it is a list of at least one text.

    Raises:
        RecordError: `wrong_type`, it is not; `empty_text`, `bad_text`, one of the texts.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise RecordError("wrong_type", f"{name} must be a list of at least one text, found {found}.")
    return [check_text(one, f"{name}[{number}]") for number, one in enumerate(value)]


def parse_inputs(inputs: Sequence[Json], read: Callable[[Json], T]) -> tuple[dict[int, T], dict[int, Outcome]]:
    """Return what `read` returns for the inputs, and the outcomes of those that it refuses, both by position."""
    values: dict[int, T] = {}
    refused: dict[int, Outcome] = {}
    for position, value in enumerate(inputs):
        try:
            values[position] = read(value)
        except RecordError as error:
            refused[position] = Outcome(failure=Failure(error.code, error.message))
    return values, refused


def merge_outcomes(refused: Mapping[int, Outcome], items: Iterable[Item[Any]], results: Iterable[Any]) -> list[Outcome]:
    """Return one outcome per input: those `refused`, and the results of the others' items.

    Args:
        refused: by position.
        items: one for each other input; their values have a `truncated`.
        results: of the items, in their order; a `Failure` or an output.
    """
    outcomes = dict(refused)
    for item, result in zip(items, results, strict=True):
        if isinstance(result, Failure):
            outcomes[item.position] = Outcome(failure=result)
        else:
            outcomes[item.position] = Outcome(result, truncated=item.value.truncated)
    return [outcomes[position] for position in range(len(outcomes))]


def encode(
    tokenizer: Any, texts: Sequence[TextOrPair], limit: int | None, *, special: bool = True
) -> list[TokenizedText]:
    """Return the texts and pairs tokenized, in one call for each of the two kinds, each truncated to `limit` tokens.

    Special tokens, added if `special`, are counted; of a pair, the longer text is cut.
    """
    texts = [text if isinstance(text, str) or text[1] is not None else text[0] for text in texts]
    found: dict[int, TokenizedText] = {}
    for kind in (str, tuple):
        positions = [position for position, text in enumerate(texts) if isinstance(text, kind)]
        if positions:
            found |= zip(
                positions,
                _encode_kind(tokenizer, [texts[position] for position in positions], limit, special),
                strict=True,
            )
    return [found[position] for position in range(len(texts))]


def _encode_kind(tokenizer: Any, texts: Sequence[TextOrPair], limit: int | None, special: bool) -> list[TokenizedText]:
    """Return texts, or pairs, tokenized in one call."""
    own_truncation = isinstance(texts[0], tuple) and tokenizer.is_fast
    truncation = {} if limit is None or own_truncation else {"truncation": True, "max_length": limit}
    batch = tokenizer(texts, padding=False, return_attention_mask=False, add_special_tokens=special, **truncation)
    encodings = batch.encodings or [None] * len(texts)
    rows = [
        TokenizedText(
            features,
            _was_truncated(tokenizer, text, len(features["input_ids"]), limit, special)
            if encoding is None
            else bool(encoding.overflowing),
            encoding,
        )
        for features, text, encoding in zip(token_features(batch), texts, encodings, strict=True)
    ]
    return [_truncate_pair(row, limit, tokenizer.truncation_side) for row in rows] if own_truncation else rows


def token_features(batch: Mapping[str, Sequence[Sequence[int]]]) -> list[TokenFeatures]:
    """Return the features of each text, with an attention mask, and without what a tokenizer gives that is no token's.

    Args:
        batch: what the tokenizer gave for the texts, without padding and masks.
    """
    lengths = list(map(len, batch["input_ids"]))
    bounds = np.cumsum([0, *lengths]).tolist()
    columns = {
        name: np.fromiter(chain.from_iterable(rows), np.int64, bounds[-1])
        for name, rows in batch.items()
        if list(map(len, rows)) == lengths
    }
    columns["attention_mask"] = np.ones(bounds[-1], np.int64)
    return [{name: column[begin:end] for name, column in columns.items()} for begin, end in pairwise(bounds)]


def _truncate_pair(row: TokenizedText, limit: int | None, side: str) -> TokenizedText:
    if limit is None or len(row) <= limit:
        return row
    kept = truncate_pair(row.encoding.sequence_ids, limit, side)
    return TokenizedText({name: values[kept] for name, values in row.features.items()}, True)


def _was_truncated(tokenizer: Any, text: TextOrPair, tokens: int, limit: int | None, special: bool) -> bool:
    """Whether a tokenizer written in Python truncated a text. It does not report that; only one at the limit can be."""
    if limit is None or tokens < limit:
        return False
    return len(tokenizer([text], add_special_tokens=special)["input_ids"][0]) > tokens


def lower_case(tokenizer: Any) -> None:
    """Make the tokenizer lower-case its texts, but not special tokens."""
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    backend = tokenizer.backend_tokenizer
    steps = [normalizers.Lowercase()] if backend.normalizer is None else [normalizers.Lowercase(), backend.normalizer]
    backend.normalizer = normalizers.Sequence(steps)


def pad(rows: Sequence[TokenFeatures], tokenizer: Any, device: str) -> dict[str, torch.Tensor]:
    """Return a batch of equal-length rows, each feature of shape (rows, longest), padded on the right."""
    fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    lengths = np.array([len(row["input_ids"]) for row in rows])
    inside = np.arange(lengths.max()) < lengths[:, None]
    block = np.empty((len(rows[0]), *inside.shape), np.int64)  # all in one copy to the device
    for name, part in zip(rows[0], block, strict=True):
        part.fill(fill.get(name, 0))
        part[inside] = np.concatenate([row[name] for row in rows])
    return dict(zip(rows[0], on_device(torch.from_numpy(block), device), strict=True))


def on_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Return the tensor on its device; a GPU copies it from pinned memory while the program runs on."""
    if not device.startswith("cuda"):
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def accepted_features(features: Mapping[str, T], model: Any) -> dict[str, T]:
    """Return the features that are arguments of the model's forward pass.

    Generic tokenizers give `token_type_ids` to models that do not take them.
    """
    names = inspect.signature(model.forward).parameters
    return {name: value for name, value in features.items() if name in names}
