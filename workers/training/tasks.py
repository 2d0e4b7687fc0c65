"""How each task is learnt: its head, what an example is to the model, and how batches are made. One row per task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ModelError
from common.training.labels import Example, Labels, names_of
from common.values import Json
from workers.training.scores import IGNORED, Scores, class_scores, number_scores, several_scores, tag_scores

Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as the model takes them, and how many were longer than that."""

    columns: Columns
    cut: int


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """What learning a task takes."""

    auto_class: str  #: of transformers: with the head that the task needs
    encode: Callable[[Any, Sequence[Example], Labels, int], Encoded]
    collator: Callable[[Any], Any]
    scores: Callable[[Labels], Scores | None]  #: None: the loss is all there is, and its exponential, the perplexity


def _classify(tokenizer: Any, examples: Sequence[Example], labels: Labels, most: int) -> Encoded:
    texts = [example["text"] for example in examples]
    pairs = [example.get("text_pair", "") for example in examples]
    found = tokenizer(texts, pairs if any(pairs) else None, truncation=True, max_length=most)
    columns = _inputs(found)
    columns["labels"] = [_target(labels, example) for example in examples]
    return Encoded(columns, _count_cut(tokenizer, texts, pairs, found["input_ids"], most))


def _target(labels: Labels, example: Example) -> Json:
    if labels.kind == "number":
        return float(example["label"])
    ids = [labels.names.index(name) for name in names_of(labels, example)]
    if labels.kind == "classes":
        return ids[0]
    return [float(number in ids) for number in range(len(labels.names))]


def _count_cut(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str], ids: Sequence[Sequence[int]], most: int
) -> int:
    """Count inputs that were cut: of those that fill the limit, the ones that would be longer without it."""
    full = [number for number, tokens in enumerate(ids) if len(tokens) >= most]
    if not full:
        return 0
    second = [pairs[n] for n in full] if any(pairs) else None
    whole = tokenizer([texts[n] for n in full], second, truncation=False, verbose=False)["input_ids"]
    return sum(len(tokens) > most for tokens in whole)


def _tag(tokenizer: Any, examples: Sequence[Example], labels: Labels, most: int) -> Encoded:
    """Give each word's tag to its first piece; the others are left out of the loss."""
    if not tokenizer.is_fast:
        raise ModelError(
            "no_tokenizer", "token-classification needs a tokenizer with tokenizer.json (a fast one): only such can "
            "tell which pieces belong to which word."
        )  # fmt: skip
    words = [example["tokens"] for example in examples]
    found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=most)
    columns, cut = _inputs(found), 0
    columns["labels"] = []
    for number, example in enumerate(examples):
        places = found.word_ids(number)
        tags = [labels.names.index(tag) for tag in example["tags"]]
        columns["labels"].append(
            [
                IGNORED if place is None or (at and places[at - 1] == place) else tags[place]
                for at, place in enumerate(places)
            ]
        )
        cut += len(places) >= most and max((p for p in places if p is not None), default=-1) < len(tags) - 1
    return Encoded(columns, cut)


def _fill(tokenizer: Any, examples: Sequence[Example], _: Labels, most: int) -> Encoded:
    """Cut long texts into several pieces: nothing of them is lost."""
    if tokenizer.mask_token_id is None:
        raise ModelError("missing_weights", "fill-mask needs a tokenizer with a mask token; this model's has none.")
    before, after = _frame(tokenizer)
    columns: Columns = {"input_ids": [], "attention_mask": []}
    cut = 0
    for ids in _plain_ids(tokenizer, [example["text"] for example in examples]):
        pieces = _pieces(ids, most - len(before) - len(after))
        cut += len(pieces) > 1
        for piece in pieces:
            columns["input_ids"].append([*before, *piece, *after])
            columns["attention_mask"].append([1] * len(columns["input_ids"][-1]))
    return Encoded(columns, cut)


def _continue(tokenizer: Any, examples: Sequence[Example], _: Labels, most: int) -> Encoded:
    """Learn every token of a text, or those that follow a prompt; the end of the text is learnt too."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    columns: Columns = {"input_ids": [], "attention_mask": [], "labels": []}
    cut = 0
    prompted = "prompt" in examples[0]
    first = _plain_ids(tokenizer, [example["prompt" if prompted else "text"] for example in examples])
    second = _plain_ids(tokenizer, [example.get("completion", "") for example in examples])
    for prompt, completion in zip(first, second, strict=True):
        learning = completion + end if prompted else [*prompt, *end]
        if not learning:  # its text is no token at all
            continue
        rows = [(prompt, learning)] if prompted else [([], p) for p in _pieces(learning, most)]
        cut += len(rows) > 1 or len(rows[0][0]) + len(rows[0][1]) > most
        for given, learnt in rows:
            learnt = learnt[:most]  # noqa: PLW2901
            given = given[max(0, len(given) + len(learnt) - most) :]  # noqa: PLW2901 - the end of a prompt matters most
            columns["input_ids"].append([*given, *learnt])
            columns["attention_mask"].append([1] * (len(given) + len(learnt)))
            columns["labels"].append([*[IGNORED] * len(given), *learnt])
    return Encoded(columns, cut)


def _plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before a text and after it."""
    empty = tokenizer("")["input_ids"]
    one = tokenizer(tokenizer.unk_token or "a")["input_ids"]
    before = next((at for at, (a, b) in enumerate(zip(empty, one, strict=False)) if a != b), len(empty))
    return empty[:before], empty[before:]


def _pieces(ids: list[int], most: int) -> list[list[int]]:
    return [ids[start : start + most] for start in range(0, len(ids), most)]


def _inputs(found: Any) -> Columns:
    return {name: list(values) for name, values in found.items()}


def _padding(tokenizer: Any) -> Any:
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer)


def _tag_padding(tokenizer: Any) -> Any:
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tokenizer)


def _masking(tokenizer: Any) -> Any:
    from workers.training.masking import Masking

    return Masking(tokenizer, mlm=True)


def _label_padding(tokenizer: Any) -> Any:
    # Not the collator for language models: it leaves out the end token where that also pads.
    from transformers import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)


def _text_scores(labels: Labels) -> Scores:
    return {"classes": class_scores, "several": several_scores, "number": number_scores}[labels.kind]


RECIPES: dict[str, TaskRecipe] = {
    "text-classification": TaskRecipe("AutoModelForSequenceClassification", _classify, _padding, _text_scores),
    "token-classification": TaskRecipe(
        "AutoModelForTokenClassification", _tag, _tag_padding, lambda labels: tag_scores(labels.names)
    ),
    "fill-mask": TaskRecipe("AutoModelForMaskedLM", _fill, _masking, lambda _: None),
    "text-generation": TaskRecipe("AutoModelForCausalLM", _continue, _label_padding, lambda _: None),
}
