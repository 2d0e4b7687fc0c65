"""What an evaluation measures, mostly by scikit-learn: arrays in, numbers out. Knows no model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from common.training.labels import Labels, uses_bio_tags
from workers.training.trainer.entities import score_entities

#: A label that the loss and the scores leave out.
IGNORE_INDEX = -100

#: Takes predictions and labels, gives each metric by name.
MetricsFunction = Callable[[Any, Any], dict[str, float]]


def single_label_metrics(predicted: Any, expected: Any) -> dict[str, float]:
    """Return accuracy and F1 of logits (examples, classes) against class numbers (examples,)."""
    found = np.argmax(predicted, axis=-1)
    return {
        "accuracy": float(metrics.accuracy_score(expected, found)),
        "f1_macro": float(metrics.f1_score(expected, found, average="macro", zero_division=0)),
        "f1_micro": float(metrics.f1_score(expected, found, average="micro", zero_division=0)),
    }


def multi_label_metrics(predicted: Any, expected: Any) -> dict[str, float]:
    """Return the scores of logits (examples, classes), of which those above 0 count, against 0 and 1."""
    found, right = np.asarray(predicted) > 0, np.asarray(expected) > 0.5
    return {
        "accuracy": float(metrics.accuracy_score(right, found)),  # of whole lists
        "f1_macro": float(metrics.f1_score(right, found, average="macro", zero_division=0)),
        "f1_micro": float(metrics.f1_score(right, found, average="micro", zero_division=0)),
    }


def regression_metrics(predicted: Any, expected: Any) -> dict[str, float]:
    """Return the errors of numbers (examples, 1) against numbers (examples,)."""
    found = np.asarray(predicted).reshape(-1)
    scores = {
        "mse": float(metrics.mean_squared_error(expected, found)),
        "mae": float(metrics.mean_absolute_error(expected, found)),
    }
    if len(found) > 1:  # of one number there is no spread to explain
        scores["r2"] = float(metrics.r2_score(expected, found))
    return scores


def token_metrics(names: Sequence[str]) -> MetricsFunction:
    """Return the scores of logits (examples, tokens, tags) against tag numbers; of entities where tags mark such."""

    def scores(predicted: Any, expected: Any) -> dict[str, float]:
        found, kept = np.argmax(predicted, axis=-1), np.asarray(expected) != IGNORE_INDEX
        flat = _word_scores(found[kept], np.asarray(expected)[kept])
        if not uses_bio_tags(names):
            return flat
        every = score_entities(*_tagged(names, predicted, expected))[""]
        return flat | {"f1": every.f1, "precision": every.precision, "recall": every.recall}

    return scores


def per_class_metrics(labels: Labels, predicted: Any, expected: Any) -> list[dict[str, Any]]:
    """Return name, precision, recall, F1 and support of each class, tag, or kind of entity."""
    if labels.kind == "number":
        return []
    if labels.kind == "tags" and uses_bio_tags(labels.names):
        found = score_entities(*_tagged(labels.names, predicted, expected))
        return [{"name": kind, **one._asdict()} for kind, one in found.items() if kind]
    if labels.kind == "several":
        guessed, right = np.asarray(predicted) > 0, np.asarray(expected) > 0.5
    else:
        kept = np.asarray(expected) != IGNORE_INDEX
        guessed, right = np.argmax(predicted, axis=-1)[kept], np.asarray(expected)[kept]
    columns = metrics.precision_recall_fscore_support(
        right, guessed, labels=range(len(labels.names)), zero_division=0
    )  # fmt: skip
    return [
        {"name": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(labels.names, *columns, strict=True)
    ]


def logits_of(predictions: Any) -> Any:
    """Return the logits; some models give hidden states beside them."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _tagged(names: Sequence[str], predicted: Any, expected: Any) -> tuple[list[list[str]], list[list[str]]]:
    """Return the tags of each sentence's words in their names: the right ones, and those found."""
    right, found = np.asarray(expected), np.argmax(predicted, axis=-1)
    rows = [
        [[names[tag] for tag in row[kept]] for row, kept in zip(tags, right != IGNORE_INDEX, strict=True)]
        for tags in (right, found)
    ]
    return rows[0], rows[1]


def _word_scores(found: Any, expected: Any) -> dict[str, float]:
    """Return accuracy and macro F1 over single words."""
    return {
        "accuracy": float(metrics.accuracy_score(expected, found)),
        "f1_macro": float(metrics.f1_score(expected, found, average="macro", zero_division=0)),
    }


def eval_metrics(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics among what Trainer tells of an evaluation; it also tells how long that took."""
    took = ("_runtime", "_per_second", "_preparation_time")
    return {name: value for name, value in logs.items() if name.startswith("eval_") and not name.endswith(took)}


def confusion_matrix(predicted: Any, expected: Any, classes: int) -> list[list[int]]:
    """Return how often class (row) was taken for class (column)."""
    found = np.argmax(predicted, axis=-1)
    matrix: list[list[int]] = metrics.confusion_matrix(expected, found, labels=range(classes)).tolist()
    return matrix
