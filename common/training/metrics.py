"""Metrics of an evaluation: those of each kind of examples, and those that the examples at hand allow."""

from collections.abc import Mapping, Sequence

from common.training.kinds import Example
from common.training.labels import Labels, uses_bio_tags
from common.training.text_pairs import has_both_labels, ranked_queries, scores_of

_RANKING, _CORRELATION = ("ndcg@10", "mrr@10", "map"), ("spearman", "pearson")
#: Metrics of an evaluation, by kind; the best checkpoint is chosen by the first.
METRICS: Mapping[str, tuple[str, ...]] = {
    "single_label": ("f1_macro", "accuracy", "f1_micro", "loss"),
    "multi_label": ("f1_macro", "accuracy", "f1_micro", "loss"),
    "regression": ("mse", "mae", "r2", "loss"),
    "tags": ("f1_macro", "accuracy", "loss"),
    "entities": ("f1", "precision", "recall", "accuracy", "f1_macro", "loss"),
    "": ("perplexity", "loss"),
    "messages": ("perplexity", "mean_token_accuracy", "loss"),
    "preferences": ("loss", "rewards/accuracies", "rewards/margins"),
    "pairs": ("ndcg@10", "mrr@10", "map@100", "accuracy@1", "accuracy@10", "recall@10", "loss"),
    "triplets": ("accuracy", "loss"),
    "scored_pairs": (*_CORRELATION, "loss"),
    "relevance": (*_RANKING, "average_precision", "f1", "accuracy", "loss"),
    "graded_relevance": (*_CORRELATION, "loss"),
}
#: Metrics for which less is better.
LESS_IS_BETTER = frozenset({"loss", "perplexity", "mse", "mae"})


def metrics_of(labels: Labels, evaluation: Sequence[Example]) -> tuple[str, ...]:
    """Return what an evaluation with these examples measures; the best checkpoint is chosen by the first."""
    lacking, _ = unmeasured(labels, evaluation)
    return tuple(name for name in known_metrics(labels) if name not in lacking)


def known_metrics(labels: Labels) -> tuple[str, ...]:
    """Return the metrics for examples with these labels."""
    return METRICS["entities" if labels.kind == "tags" and uses_bio_tags(labels.names) else labels.kind]


def unmeasured(labels: Labels, evaluation: Sequence[Example]) -> tuple[tuple[str, ...], str]:
    """Return the metrics that an evaluation with these examples has no value for, and why; none if there is no set."""
    if not evaluation:
        return (), ""
    if labels.kind == "regression" and len(evaluation) == 1:
        return ("r2",), "the evaluation set has a single example"
    if labels.kind == "relevance" and not any(
        has_both_labels(found) for _, found in ranked_queries(evaluation).values()
    ):
        return _RANKING, "no query of the evaluation set has both a document that fits and one that does not"
    if labels.kind in ("scored_pairs", "graded_relevance") and len(set(scores_of(evaluation))) == 1:
        return _CORRELATION, "all scores of the evaluation set are the same"
    return (), ""
