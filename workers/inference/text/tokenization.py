"""Tokenization: checks untrusted texts, tokenizes a whole chunk at once, and pads batches.

Padding is always on the right, whatever the tokenizer's setting: a batch then gives what its texts give one by one,
also for models that count positions from the first token.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from tokenizers import normalizers

from common.errors import RecordError
from common.records import Failure, Json, Outcome
from workers.inference.core.batches import Item
from workers.inference.text.truncation import truncate_pair

T = TypeVar("T")
#: A text, or one with its pair.
TextOrPair = str | tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One tokenized text."""

    features: dict[str, list[int]]  #: by the names of the model's arguments, each as long as the text
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
        raise RecordError("empty_text", f"Expected {what} to be text, found nothing but white space.")
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
    batch = tokenizer(texts, padding=False, return_attention_mask=True, add_special_tokens=special, **truncation)
    rows = [
        TokenizedText(
            {name: batch[name][row] for name in batch},
            _was_truncated(tokenizer, texts[row], len(batch["input_ids"][row]), limit, special)
            if encoding is None
            else bool(encoding.overflowing),
            encoding,
        )
        for row, encoding in enumerate(batch.encodings or [None] * len(texts))
    ]
    return [_truncate_pair(row, limit, tokenizer.truncation_side) for row in rows] if own_truncation else rows


def _truncate_pair(row: TokenizedText, limit: int | None, side: str) -> TokenizedText:
    if limit is None or len(row) <= limit:
        return row
    kept = truncate_pair(row.encoding.sequence_ids, limit, side)
    return TokenizedText({name: [values[position] for position in kept] for name, values in row.features.items()}, True)


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


def pad(rows: Sequence[Mapping[str, list[int]]], tokenizer: Any, device: str) -> dict[str, torch.Tensor]:
    """Return a batch of equal-length rows, each feature of shape (rows, longest), padded on the right."""
    fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        name: on_device(
            torch.tensor([row[name] + [fill.get(name, 0)] * (longest - len(row[name])) for row in rows]), device
        )
        for name in rows[0]
    }


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
