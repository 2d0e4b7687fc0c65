"""Recipes of the training tasks: for each, the head it needs, how examples are tokenized, and how batches are made."""

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from common.errors import ModelError
from common.records import Json
from common.training.kinds import Example
from common.training.labels import Labels, class_names_of
from common.training.options import TrainingOptions
from workers.inference.text.tokenization import TokenizedText, encode
from workers.training.trainer.job_trainer import LABELED, TEXTS, TrainerKind
from workers.training.trainer.metrics import IGNORE_INDEX

#: What was done to texts that are longer than the model takes.
AT_END, INTO_PIECES, PROMPTS = "cut", "cut into several pieces", "cut at the beginning of their prompts"
COMPLETIONS = "cut at the end of their completions"
#: Beginnings of the Unicode names of characters in scripts that are written without spaces.
_UNSPACED_SCRIPTS = (
    "CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip
#: Attempts to mask at least one token of a batch; one that holds only special tokens is left as it is.
_MASK_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Examples as the model takes them, tokenized like at inference."""

    columns: dict[str, list[Any]]
    truncated: Mapping[str, int]  #: how many were longer than the model takes, by what was done to them
    without_tokens: Sequence[int] = ()  #: numbers of the examples without a row: the tokenizer finds no token
    left_out: Sequence[int] = ()  #: numbers of those without a row because they are too long
    notes: Sequence[str] = ()  #: remarks for the user


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """What fine-tuning for a task takes."""

    auto_class: str  #: transformers' class of models with the head that the task needs
    encode: Callable[[Any, Sequence[Example], Labels, int], EncodedExamples]
    collator: Callable[[Any], Any]
    trainer: Callable[[TrainingOptions], TrainerKind] = lambda _: LABELED


class MaskingCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """Masks tokens at random, at least one in each batch: the mean loss over no token is not a number."""

    def torch_call(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return a batch with at least one masked token."""
        for _ in range(_MASK_ATTEMPTS):
            batch: dict[str, Any] = super().torch_call(examples)
            if (batch["labels"] != IGNORE_INDEX).any():
                break
        return batch


@dataclass(slots=True)
class _Rows:
    """Rows of token ids under construction; labels only where some tokens are not learned."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    truncated: Counter[str] = field(default_factory=Counter)

    def add(self, ids: list[int], **more: list[int]) -> None:
        for name, values in {"input_ids": ids, "attention_mask": [1] * len(ids), **more}.items():
            self.columns.setdefault(name, []).append(values)


def _encode_classification(
    tokenizer: Any, examples: Sequence[Example], labels: Labels, max_tokens: int
) -> EncodedExamples:
    texts = [(example["text"], example.get("text_pair") or None) for example in examples]
    rows = encode(tokenizer, texts, max_tokens)
    return _collect(
        rows, [_target(labels, example) if len(row) else None for row, example in zip(rows, examples, strict=True)]
    )


def _target(labels: Labels, example: Example) -> Json:
    if labels.kind == "regression":
        return float(example["label"])
    ids = [labels.names.index(name) for name in class_names_of(labels, example)]
    return ids[0] if labels.kind == "single_label" else [float(number in ids) for number in range(len(labels.names))]


def _encode_tags(tokenizer: Any, examples: Sequence[Example], labels: Labels, max_tokens: int) -> EncodedExamples:
    """Label the first token of each word with its tag; the loss ignores the other tokens."""
    if not tokenizer.is_fast:
        raise ModelError(
            "no_tokenizer",
            "token-classification needs a fast tokenizer (one with tokenizer.json): it knows the word of a token.",
        )
    texts = [join_words(example["tokens"]) for example in examples]
    rows = encode(tokenizer, [text for text, _ in texts], max_tokens)
    targets: list[list[int] | None] = []
    for row, (text, starts), example in zip(rows, texts, examples, strict=True):
        words = first_token_words(text, starts, row.encoding.offsets)
        tags = [labels.names.index(tag) for tag in example["tags"]]
        found = [IGNORE_INDEX if word is None else tags[word] for word in words]
        targets.append(found if set(found) - {IGNORE_INDEX} else None)
    return _collect(rows, targets)


def _collect(rows: Sequence[TokenizedText], targets: Sequence[Json]) -> EncodedExamples:
    """Return the rows with their targets, leaving out those whose target is None."""
    kept = [(row.features, target) for row, target in zip(rows, targets, strict=True) if target is not None]
    names = kept[0][0] if kept else ()
    columns: dict[str, list[Json]] = {name: [features[name].tolist() for features, _ in kept] for name in names}
    columns["labels"] = [target for _, target in kept]
    empty = [number for number, target in enumerate(targets) if target is None]
    return EncodedExamples(columns, {AT_END: sum(row.truncated for row in rows)}, empty)


def _encode_masked(tokenizer: Any, examples: Sequence[Example], _: Labels, max_tokens: int) -> EncodedExamples:
    """Cut long texts into several pieces, so that nothing of them is lost."""
    if tokenizer.mask_token_id is None:
        raise ModelError("missing_weights", "fill-mask needs a tokenizer with a mask token; this one has none.")
    rows = _Rows()
    for before, body, after in _tokenize(tokenizer, [example["text"] for example in examples]):
        pieces = _split(body, max_tokens - len(before) - len(after))
        rows.truncated[INTO_PIECES] += len(pieces) > 1
        for piece in pieces:
            rows.add([*before, *piece, *after])
    return EncodedExamples(rows.columns, rows.truncated)


def _encode_causal(tokenizer: Any, examples: Sequence[Example], _: Labels, max_tokens: int) -> EncodedExamples:
    """Learn every token of a text, or the completion of a prompt, and the token that ends the text."""
    rows = _Rows()
    pairs = _prompt_pairs if "prompt" in examples[0] else _text_pairs
    for context, learned in pairs(tokenizer, examples, max_tokens, rows.truncated):
        rows.add([*context, *learned], labels=[*[IGNORE_INDEX] * len(context), *learned])
    return EncodedExamples(rows.columns, rows.truncated)


def _text_pairs(
    tokenizer: Any, examples: Sequence[Example], max_tokens: int, truncated: Counter[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield context and learned tokens of plain texts; each piece of a long text begins like a text."""
    for before, body, after in _tokenize(tokenizer, [example["text"] for example in examples]):
        if not body:
            continue
        pieces = _split(_with_end(tokenizer, [*body, *after]), max_tokens - len(before))
        truncated[INTO_PIECES] += len(pieces) > 1
        yield from ((before, piece) for piece in pieces)


def _prompt_pairs(
    tokenizer: Any, examples: Sequence[Example], max_tokens: int, truncated: Counter[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield prompts and completions; a pair that is too long loses the beginning of its prompt first."""
    prompts = [example["prompt"] for example in examples]
    completions = [example["completion"] for example in examples]
    texts = _ids(tokenizer, [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])
    plain = _ids(tokenizer, completions, add_special_tokens=False)
    for (before, body, after), text, completion in zip(_tokenize(tokenizer, prompts), texts, plain, strict=True):
        prompt = [*before, *body, *after]
        continues = text[: len(prompt)] == prompt  # a token across the boundary is split there, like at inference
        learned = _with_end(tokenizer, text[len(prompt) :] if continues else completion)
        available = max_tokens - len(learned) - len(before) - len(after)
        if len(body) > available:
            truncated[COMPLETIONS if len(learned) > max_tokens else PROMPTS] += 1
            prompt = [*before, *body[len(body) - available :], *after] if available >= 0 else []
        yield prompt, learned[:max_tokens]


def _with_end(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return the ids with the end-of-text token, if the tokenizer has one."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield each text's ids, tokenized like at inference: special tokens before it, its own, special ones after."""
    for whole, body in zip(_ids(tokenizer, texts), _ids(tokenizer, texts, add_special_tokens=False), strict=True):
        starts = range(len(whole) - len(body) + 1)
        begin = next((start for start in starts if whole[start : start + len(body)] == body), None)
        yield ([], whole, []) if begin is None else (whole[:begin], body, whole[begin + len(body) :])


def _ids(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), verbose=False, **options)["input_ids"]
    return found


def _split(ids: list[int], size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """Return the words as running text, which is tokenized like at inference, and where each word begins.

    Words are joined by a space, except in scripts that are written without spaces.
    """
    text, starts = "", []
    for word in words:
        if text and not (_is_unspaced(text[-1:]) and _is_unspaced(word[:1])):
            text += " "
        starts.append(len(text))
        text += word
    return text, starts


def first_token_words(text: str, starts: Sequence[int], offsets: Iterable[tuple[int, int]]) -> list[int | None]:
    """Return for each token the number of the word whose first token it is, None for all others.

    Args:
        text: the words, joined.
        starts: where each of them begins.
        offsets: begin and end of each token in the text; empty for special tokens.
    """
    found: list[int | None] = []
    latest = -1
    for begin, end in offsets:
        token = text[begin:end]
        visible = begin + len(token) - len(token.lstrip())  # some tokens include the space before their word
        word = bisect_right(starts, visible) - 1 if visible < end else -1
        found.append(word if word > latest else None)
        latest = max(latest, word)
    return found


def _is_unspaced(character: str) -> bool:
    return bool(character) and unicodedata.name(character, "").startswith(_UNSPACED_SCRIPTS)


def _texts_trainer(_: TrainingOptions) -> TrainerKind:
    return TEXTS


RECIPES: dict[str, TaskRecipe] = {
    "text-classification": TaskRecipe(
        "AutoModelForSequenceClassification", _encode_classification, DataCollatorWithPadding
    ),
    "token-classification": TaskRecipe(
        "AutoModelForTokenClassification", _encode_tags, DataCollatorForTokenClassification
    ),
    "fill-mask": TaskRecipe("AutoModelForMaskedLM", _encode_masked, MaskingCollator, _texts_trainer),
    # Not the collator for language models: it ignores the end token where that is also the padding.
    "text-generation": TaskRecipe(
        "AutoModelForCausalLM",
        _encode_causal,
        partial(DataCollatorForSeq2Seq, label_pad_token_id=IGNORE_INDEX),
        _texts_trainer,
    ),
}
