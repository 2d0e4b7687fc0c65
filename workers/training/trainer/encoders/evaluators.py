"""Evaluations of `embedding` and `rerank`: the evaluators of sentence-transformers, their metrics under plain names.

An embedding model is measured with its own similarity function, which the names of its metrics leave out.
"""

from collections.abc import Sequence
from typing import Any

from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    TripletEvaluator,
)

from common.training.kinds import Example
from common.training.labels import Labels
from common.training.metrics import METRICS, metrics_of
from common.training.text_pairs import has_both_labels, ranked_queries
from workers.training.trainer.encoders.datasets import texts_of


class PlainMetrics(BaseEvaluator):  # type: ignore[misc]
    """Runs evaluators, and gives their metrics the names of `common.training.metrics.METRICS`.

    Args:
        kind: of the examples.
        evaluators: measure the whole model, or its vectors cut to the dimension that is named with each.
    """

    def __init__(self, kind: str, evaluators: Sequence[tuple[int | None, Any]]) -> None:
        super().__init__()
        self._wanted = METRICS[kind]
        self._evaluators = evaluators

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return the metrics; of vectors that are cut, the first metric alone."""
        metrics: dict[str, float] = {}
        for dimension, evaluator in self._evaluators:
            found = self._named(model, evaluator(model))
            if dimension is None:
                metrics |= found
            else:
                name = next(name for name in self._wanted if name in found)
                metrics[f"{name}_dim_{dimension}"] = found[name]
        return metrics

    def _named(self, model: Any, metrics: dict[str, float]) -> dict[str, float]:
        function = getattr(model, "similarity_fn_name", "")
        plain = {
            name.removeprefix(f"{function}_").removesuffix(f"_{function}"): value for name, value in metrics.items()
        }
        return {name: float(plain[name]) for name in self._wanted if name in plain}


def make_evaluator(
    labels: Labels, examples: Sequence[Example], batch_size: int, dims: Sequence[int] = ()
) -> PlainMetrics | None:
    """Return the evaluator of an evaluation set; None if the loss is all that can be measured with it.

    Args:
        labels: of a kind of `common.training.kinds.PAIR_KINDS`.
        examples: the evaluation set.
        batch_size: texts or pairs in one forward pass.
        dims: lower dimensions that vectors are also cut to.
    """
    kind, options = labels.kind, {"batch_size": batch_size, "write_csv": False}
    if metrics_of(labels, examples) == ("loss",):
        return None
    if "relevance" in kind:
        return PlainMetrics(kind, [(None, one) for one in _rerankers(kind, examples, options)])
    make = {"pairs": _retrieval, "triplets": _triplets, "scored_pairs": _similarity}[kind]
    return PlainMetrics(kind, [(dim, make(examples, {**options, "truncate_dim": dim})) for dim in (None, *dims)])


def _retrieval(examples: Sequence[Example], options: dict[str, Any]) -> Any:
    """Find the text that belongs to each among those of all examples."""
    corpus = {text: text for example in examples for text in example["texts"][1:]}
    relevant: dict[str, set[str]] = {}
    for example in examples:
        relevant.setdefault(example["texts"][0], set()).add(example["texts"][1])
    return InformationRetrievalEvaluator(
        {query: query for query in relevant}, corpus, relevant,
        accuracy_at_k=[1, 10], precision_recall_at_k=[10], **options,
    )  # fmt: skip


def _triplets(examples: Sequence[Example], options: dict[str, Any]) -> Any:
    rows = [(*example["texts"][:2], negative) for example in examples for negative in example["texts"][2:]]
    anchors, positives, negatives = map(list, zip(*rows, strict=True))
    return TripletEvaluator(anchors, positives, negatives, **options)


def _similarity(examples: Sequence[Example], options: dict[str, Any]) -> Any:
    first, second = map(list, zip(*(example["texts"] for example in examples), strict=True))
    return EmbeddingSimilarityEvaluator(first, second, [example["score"] for example in examples], **options)


def _rerankers(kind: str, examples: Sequence[Example], options: dict[str, Any]) -> list[Any]:
    pairs = [list(pair) for pair in texts_of(kind, examples)]
    labels = [label for example in examples for label in example["labels"]]
    if kind == "graded_relevance":
        return [CrossEncoderCorrelationEvaluator(pairs, labels, **options)]
    found: list[Any] = [CrossEncoderClassificationEvaluator(pairs, [int(label) for label in labels], **options)]
    if samples := _rankable(examples):
        found.append(CrossEncoderRerankingEvaluator(samples, at_k=10, **options))
    return found


def _rankable(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return the queries that have both documents that fit and documents that do not."""
    return [
        {
            "query": query,
            "positive": [document for document, label in zip(documents, labels, strict=True) if label],
            "negative": [document for document, label in zip(documents, labels, strict=True) if not label],
        }
        for query, (documents, labels) in ranked_queries(examples).items()
        if has_both_labels(labels)
    ]
