"""Kinds of training examples: which ones a task learns from, and what they are in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from common.errors import UsageError
from common.records import Json

Example = Mapping[str, Json]
#: Examples with labels: transformers' problem types, and `tags`. Those without: `UNLABELED`.
ExampleKind = Literal[
    "single_label", "multi_label", "regression", "tags",
    "", "messages", "preferences", "pairs", "triplets", "scored_pairs", "relevance", "graded_relevance",
]  # fmt: skip

#: The tasks whose examples have several texts, and the kinds of examples of each.
PAIR_TASKS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("pairs", "triplets", "scored_pairs"),
    "rerank": ("relevance", "graded_relevance"),
}
PAIR_KINDS = frozenset(kind for kinds in PAIR_TASKS.values() for kind in kinds)
#: The tasks that can be fine-tuned, and the kinds of examples that their metrics may be for (`entities`: of `tags`).
TASK_KINDS: Mapping[str, tuple[str, ...]] = {
    "text-classification": ("single_label", "multi_label", "regression"),
    "token-classification": ("tags", "entities"),
    "fill-mask": ("",),
    "text-generation": ("", "messages", "preferences"),
    **PAIR_TASKS,
}
#: The kinds without labels of classes or numbers, in words.
UNLABELED: Mapping[str, str] = {
    "": "texts",
    "messages": "chats, of which only the assistant's words are learned",
    "preferences": "preferences, each of a chosen answer over a rejected one (DPO)",
    "pairs": "pairs of texts that belong together",
    "triplets": "triplets: a text, one that fits it, and others that do not",
    "scored_pairs": "pairs of texts with a score",
    "relevance": "queries and documents, each of which fits (1) or does not (0)",
    "graded_relevance": "queries and documents with a graded label",
}
#: Examples of the kind "" that must not be mixed.
_PROMPT, _TEXT = "prompts with what follows them", "plain texts"


def common_kind(examples: Sequence[Example]) -> ExampleKind:
    """Return the kind of examples without labels.

    Raises:
        UsageError: They are of several kinds.
    """
    counts = Counter(map(_kind_and_words, examples))
    if {kind for kind, _ in counts} == {"relevance", "graded_relevance"}:
        return "graded_relevance"
    (kind, words), *others = counts
    if others:
        rest = " or ".join(other for _, other in others)
        count = counts[kind, words]
        raise UsageError(f"{count:,} of {len(examples):,} examples are {words}, the others {rest}: use one kind.")
    return kind


def _kind_and_words(example: Example) -> tuple[ExampleKind, str]:
    kind = _kind(example)
    short = {"": _PROMPT if "prompt" in example else _TEXT, "messages": "chats", "preferences": "preferences"}
    return kind, short.get(kind, UNLABELED[kind])


def _kind(example: Example) -> ExampleKind:
    if "query" in example:
        return "relevance" if set(example["labels"]) <= {0, 1} else "graded_relevance"
    if "texts" in example:
        return "scored_pairs" if "score" in example else "triplets" if len(example["texts"]) > 2 else "pairs"
    return "messages" if "messages" in example else "preferences" if "chosen" in example else ""
