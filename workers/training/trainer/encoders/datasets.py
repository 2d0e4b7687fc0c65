"""Examples of several texts as the trainers of sentence-transformers take them: by columns, in their order."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from common.training.kinds import Example
from common.training.losses import LISTWISE
from common.training.text_pairs import ranked_queries


def to_columns(kind: str, loss: str, examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return examples of a kind as columns for a loss.

    Args:
        kind: of `common.training.kinds.PAIR_KINDS`.
        loss: of `common.training.losses.LOSSES`.
        examples: at least one, all with the same number of texts.
    """
    if "relevance" in kind:
        return _lists(examples) if loss in LISTWISE else _pairs(examples)
    texts = list(zip(*(example["texts"] for example in examples), strict=True))
    names = text_columns(kind, len(texts))
    columns: dict[str, list[Any]] = {name: list(column) for name, column in zip(names, texts, strict=True)}
    if kind == "scored_pairs":
        columns["score"] = [example["score"] for example in examples]
    return columns


def text_columns(kind: str, texts: int) -> tuple[str, ...]:
    """Return the names of the columns of texts for `embedding`."""
    if kind == "scored_pairs":
        return ("sentence1", "sentence2")
    negatives = ("negative",) if texts == 3 else tuple(f"negative_{number}" for number in range(1, texts - 1))
    return ("anchor", "positive", *negatives)


def to_dataset(columns: Mapping[str, Sequence[Any]]) -> Any:
    """Return columns as a dataset."""
    return datasets.Dataset.from_dict(dict(columns))


def texts_of(kind: str, examples: Sequence[Example]) -> list[tuple[str, ...]]:
    """Return what the model reads at once: single texts, or a query with a document."""
    if "relevance" in kind:
        columns = _pairs(examples)
        return list(zip(columns["query"], columns["document"], strict=True))
    return [(text,) for example in examples for text in example["texts"]]


def _pairs(examples: Sequence[Example]) -> dict[str, list[Any]]:
    rows = [
        (example["query"], document, label)
        for example in examples
        for document, label in zip(example["documents"], example["labels"], strict=True)
    ]
    return _columns(("query", "document", "label"), rows)


def _lists(examples: Sequence[Example]) -> dict[str, list[Any]]:
    rows = [
        (query, documents, labels)
        for query, (documents, labels) in ranked_queries(examples).items()
        if len(documents) > 1
    ]
    return _columns(("query", "documents", "labels"), rows)


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
