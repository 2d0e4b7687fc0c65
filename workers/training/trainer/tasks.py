"""How each task is learnt: its head, what an example is to the model, and how batches are made. One row per task."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ModelError
from common.records import Json
from common.training.labels import Example, Labels, class_names_of
from workers.inference.text.tokenization import TokenizedText, encode
from workers.training.trainer.metrics import (
    IGNORE_INDEX,
    MetricsFunction,
    multi_label_metrics,
    regression_metrics,
    single_label_metrics,
    token_metrics,
)
from workers.training.trainer.words import first_token_words, join_words

Columns = dict[str, list[Any]]


#: What was done to texts that are longer than the model takes.
AT_END, INTO_PIECES, PROMPTS = "cut", "cut into several pieces", "cut at the beginning of their prompts"
COMPLETIONS = "cut at the end of their completions"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as the model takes them, tokenised as inference does it."""

    columns: Columns
    cut: Mapping[str, int]  #: how many were longer than the model takes, by what was done to them
    without_tokens: Sequence[int] = ()  #: the numbers of examples that have no row, since the tokenizer finds nothing


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """What learning a task takes."""

    auto_class: str  #: of transformers: with the head that the task needs
    encode: Callable[[Any, Sequence[Example], Labels, int], Encoded]
    collator: Callable[[Any], Any]
    scores: Callable[
        [Labels], MetricsFunction | None
    ]  #: None: the loss is all there is, and its exponential, the perplexity


def _classify(tokenizer: Any, examples: Sequence[Example], labels: Labels, most: int) -> Encoded:
    found = encode(tokenizer, [(example["text"], example.get("text_pair") or None) for example in examples], most)
    columns = _columns([row for row in found if len(row)])
    columns["labels"] = [_target(labels, example) for row, example in zip(found, examples, strict=True) if len(row)]
    return Encoded(columns, _count_cut(found), [number for number, row in enumerate(found) if not len(row)])


def _target(labels: Labels, example: Example) -> Json:
    if labels.kind == "number":
        return float(example["label"])
    ids = [labels.names.index(name) for name in class_names_of(labels, example)]
    if labels.kind == "classes":
        return ids[0]
    return [float(number in ids) for number in range(len(labels.names))]


def _tag(tokenizer: Any, examples: Sequence[Example], labels: Labels, most: int) -> Encoded:
    """Give each word's tag to its first token in running text; the others are left out of the loss."""
    if not tokenizer.is_fast:
        raise ModelError(
            "no_tokenizer", "token-classification needs a tokenizer with tokenizer.json (a fast one): only such can "
            "tell which pieces belong to which word."
        )  # fmt: skip
    placed = [join_words(example["tokens"]) for example in examples]
    found = encode(tokenizer, [text for text, _ in placed], most)
    rows: list[tuple[Any, list[int]]] = []
    without_tokens: list[int] = []
    for number, (row, (text, starts), example) in enumerate(zip(found, placed, examples, strict=True)):
        tags = [labels.names.index(tag) for tag in example["tags"]]
        words = first_token_words(text, starts, row.encoding.offsets)
        targets = [IGNORE_INDEX if word is None else tags[word] for word in words]
        if any(target != IGNORE_INDEX for target in targets):
            rows.append((row, targets))
        else:
            without_tokens.append(number)
    columns = _columns([row for row, _ in rows])
    columns["labels"] = [targets for _, targets in rows]
    return Encoded(columns, _count_cut(found), without_tokens)


def _fill(tokenizer: Any, examples: Sequence[Example], _: Labels, most: int) -> Encoded:
    """Cut long texts into several pieces: nothing of them is lost."""
    if tokenizer.mask_token_id is None:
        raise ModelError("missing_weights", "fill-mask needs a tokenizer with a mask token; this model's has none.")
    columns: Columns = {"input_ids": [], "attention_mask": []}
    cut: Counter[str] = Counter()
    for before, body, after in _framed(tokenizer, [example["text"] for example in examples]):
        pieces = _pieces(body, most - len(before) - len(after))
        cut[INTO_PIECES] += len(pieces) > 1
        for piece in pieces:
            columns["input_ids"].append([*before, *piece, *after])
            columns["attention_mask"].append([1] * len(columns["input_ids"][-1]))
    return Encoded(columns, cut)


def _continue(tokenizer: Any, examples: Sequence[Example], _: Labels, most: int) -> Encoded:
    """Learn every token of a text, or those that follow a prompt; the end of the text is learnt too."""
    cut: Counter[str] = Counter()
    cut_up = _prompted if "prompt" in examples[0] else _running
    columns: Columns = {"input_ids": [], "attention_mask": [], "labels": []}
    for given, learnt in cut_up(tokenizer, examples, most, cut):
        columns["input_ids"].append([*given, *learnt])
        columns["attention_mask"].append([1] * (len(given) + len(learnt)))
        columns["labels"].append([*[IGNORE_INDEX] * len(given), *learnt])
    return Encoded(columns, cut)


def _running(
    tokenizer: Any, examples: Sequence[Example], most: int, cut: Counter[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Give what is given and what is to be learnt of plain texts; each piece of a long one begins as a text does."""
    for before, body, after in _framed(tokenizer, [example["text"] for example in examples]):
        if not body:
            continue
        pieces = _pieces(_ended(tokenizer, [*body, *after]), most - len(before))
        cut[INTO_PIECES] += len(pieces) > 1
        yield from ((before, piece) for piece in pieces)


def _prompted(
    tokenizer: Any, examples: Sequence[Example], most: int, cut: Counter[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Give prompts and completions; of pairs that are too long, the prompts' beginnings go first."""
    prompts = [example["prompt"] for example in examples]
    completions = [example["completion"] for example in examples]
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    parts = zip(_framed(tokenizer, prompts), _ids(tokenizer, texts), _plain_ids(tokenizer, completions), strict=True)
    for (before, body, after), text, alone in parts:
        prompt = [*before, *body, *after]
        goes_on = text[: len(prompt)] == prompt  # a word across the border is cut there, as in inference
        learnt = _ended(tokenizer, text[len(prompt) :] if goes_on else alone)
        room = most - len(learnt) - len(before) - len(after)
        if len(body) > room:
            cut[COMPLETIONS if len(learnt) > most else PROMPTS] += 1
            prompt = [*before, *body[len(body) - room :], *after] if room >= 0 else []
        yield prompt, learnt[:most]


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return the tokens with that of the end of text, if the tokenizer knows one."""
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _framed(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], list[int], list[int]]]:
    """Return of each text the tokens as inference takes them: special ones before it, its own, special ones after."""
    return [
        _parted(whole, body) for whole, body in zip(_ids(tokenizer, texts), _plain_ids(tokenizer, texts), strict=True)
    ]


def _parted(whole: list[int], body: list[int]) -> tuple[list[int], list[int], list[int]]:
    for begin in range(len(whole) - len(body) + 1):
        if whole[begin : begin + len(body)] == body:
            return whole[:begin], body, whole[begin + len(body) :]
    return [], whole, []


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    return found


def _plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _pieces(ids: list[int], most: int) -> list[list[int]]:
    return [ids[start : start + most] for start in range(0, len(ids), most)]


def _columns(rows: Sequence[TokenizedText]) -> Columns:
    return {name: [row.features[name] for row in rows] for name in (rows[0].features if rows else ())}


def _count_cut(rows: Sequence[TokenizedText]) -> dict[str, int]:
    return {AT_END: sum(row.truncated for row in rows)}


def _padding(tokenizer: Any) -> Any:
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer)


def _tag_padding(tokenizer: Any) -> Any:
    from transformers import DataCollatorForTokenClassification

    return DataCollatorForTokenClassification(tokenizer)


def _masking(tokenizer: Any) -> Any:
    from workers.training.trainer.masking import MaskingCollator

    return MaskingCollator(tokenizer, mlm=True)


def _label_padding(tokenizer: Any) -> Any:
    # Not the collator for language models: it leaves out the end token where that also pads.
    from transformers import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORE_INDEX)


def _text_scores(labels: Labels) -> MetricsFunction:
    return {"classes": single_label_metrics, "several": multi_label_metrics, "number": regression_metrics}[labels.kind]


RECIPES: dict[str, TaskRecipe] = {
    "text-classification": TaskRecipe("AutoModelForSequenceClassification", _classify, _padding, _text_scores),
    "token-classification": TaskRecipe(
        "AutoModelForTokenClassification", _tag, _tag_padding, lambda labels: token_metrics(labels.names)
    ),
    "fill-mask": TaskRecipe("AutoModelForMaskedLM", _fill, _masking, lambda _: None),
    "text-generation": TaskRecipe("AutoModelForCausalLM", _continue, _label_padding, lambda _: None),
}
