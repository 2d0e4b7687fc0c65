"""Evaluation metrics, mostly by scikit-learn: arrays in, numbers out; spans are scored here, as seqeval counts them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn import metrics

from common.training.labels import Labels, uses_bio_tags

#: The label that the loss and the metrics ignore, as in transformers.
IGNORE_INDEX = -100

#: Takes logits and labels, returns each metric by name.
MetricsFunction = Callable[[Any, Any], dict[str, float]]

#: Prefixes of a tag that begin a span, and that end one (IOBES writes E- and S-, BILOU L- and U-).
_BEGINS, _ENDS = ("B", "S", "U"), ("E", "L", "S", "U")
_PREFIXES = ("B", "I", *_ENDS)


class TagSpan(NamedTuple):
    """A span of tokens, `end` excluded."""

    kind: str
    begin: int
    end: int


class SpanMetrics(NamedTuple):
    """How well the spans of a kind were found; `support` is how many there are."""

    precision: float
    recall: float
    f1: float
    support: int


def metrics_for(labels: Labels) -> MetricsFunction | None:
    """Return the metrics function for these labels; None for tasks whose only metric is the loss."""
    by_kind: dict[str, MetricsFunction] = {
        "single_label": single_label_metrics,
        "multi_label": multi_label_metrics,
        "regression": regression_metrics,
        "tags": partial(token_metrics, labels.names),
    }
    return by_kind.get(labels.kind)


def single_label_metrics(logits: Any, expected: Any) -> dict[str, float]:
    """Return accuracy and F1 of logits (examples, classes) against class numbers (examples,)."""
    return _class_metrics(np.argmax(logits, axis=-1), expected)


def multi_label_metrics(logits: Any, expected: Any) -> dict[str, float]:
    """Return accuracy (of whole rows) and F1 of logits (examples, classes), positive above 0, against 0 and 1."""
    return _class_metrics(np.asarray(logits) > 0, np.asarray(expected) > 0.5)


def _class_metrics(predicted: Any, expected: Any) -> dict[str, float]:
    averages = {
        f"f1_{average}": float(metrics.f1_score(expected, predicted, average=average, zero_division=0))
        for average in ("macro", "micro")
    }
    return {"accuracy": float(metrics.accuracy_score(expected, predicted)), **averages}


def regression_metrics(logits: Any, expected: Any) -> dict[str, float]:
    """Return the errors of numbers (examples, 1) against numbers (examples,)."""
    predicted = np.asarray(logits).reshape(-1)
    found = {
        "mse": float(metrics.mean_squared_error(expected, predicted)),
        "mae": float(metrics.mean_absolute_error(expected, predicted)),
    }
    if len(predicted) > 1:  # a single number has no variance to explain
        found["r2"] = float(metrics.r2_score(expected, predicted))
    return found


def token_metrics(names: Sequence[str], logits: Any, expected: Any) -> dict[str, float]:
    """Return metrics of logits (examples, tokens, tags) against tag numbers: of words, and of spans with BIO tags."""
    kept = np.asarray(expected) != IGNORE_INDEX
    found = _class_metrics(np.argmax(logits, axis=-1)[kept], np.asarray(expected)[kept])
    del found["f1_micro"]  # of words it equals the accuracy
    if not uses_bio_tags(names):
        return found
    overall = score_spans(*_tag_names(names, logits, expected))[""]
    return found | {"f1": overall.f1, "precision": overall.precision, "recall": overall.recall}


def per_class_metrics(labels: Labels, logits: Any, expected: Any) -> list[dict[str, Any]]:
    """Return name, precision, recall, F1 and support of each class, tag, or kind of span."""
    if labels.kind == "regression":
        return []
    if labels.kind == "tags" and uses_bio_tags(labels.names):
        spans = score_spans(*_tag_names(labels.names, logits, expected))
        return [{"name": kind, **found._asdict()} for kind, found in spans.items() if kind]
    if labels.kind == "multi_label":
        predicted, right = np.asarray(logits) > 0, np.asarray(expected) > 0.5
    else:
        kept = np.asarray(expected) != IGNORE_INDEX
        predicted, right = np.argmax(logits, axis=-1)[kept], np.asarray(expected)[kept]
    columns = metrics.precision_recall_fscore_support(
        right, predicted, labels=range(len(labels.names)), zero_division=0
    )  # fmt: skip
    return [
        {"name": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(labels.names, *columns, strict=True)
    ]


def confusion_matrix(logits: Any, expected: Any, classes: int) -> list[list[int]]:
    """Return how often each class (row) was predicted as each class (column)."""
    predicted = np.argmax(logits, axis=-1)
    matrix: list[list[int]] = metrics.confusion_matrix(expected, predicted, labels=range(classes)).tolist()
    return matrix


def logits_of(predictions: Any) -> Any:
    """Return the logits of `Trainer.predict`; some models return hidden states as well."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def eval_metrics(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics in Trainer's logs of an evaluation, without its timings and the tokens that TRL counts."""
    others = ("_runtime", "_per_second", "_preparation_time", "_num_tokens")
    return {name: value for name, value in logs.items() if name.startswith("eval_") and not name.endswith(others)}


def _tag_names(names: Sequence[str], logits: Any, expected: Any) -> list[list[list[str]]]:
    """Return the tags of each sentence's words by name: the expected and the predicted ones."""
    right, predicted = np.asarray(expected), np.argmax(logits, axis=-1)
    return [
        [[names[tag] for tag in row[kept]] for row, kept in zip(tags, right != IGNORE_INDEX, strict=True)]
        for tags in (right, predicted)
    ]


def find_spans(tags: Sequence[str]) -> list[TagSpan]:
    """Return the spans that BIO, IOBES or BILOU tags mark; one that begins without B- counts too."""
    found: list[TagSpan] = []
    previous, kind, begin = "O", "", 0
    for position, tag in enumerate((*tags, "O")):
        prefix, own = _split_tag(tag)
        inside = prefix != "O" and previous != "O" and prefix not in _BEGINS and previous not in _ENDS
        if not (inside and own == kind):
            if previous != "O":
                found.append(TagSpan(kind, begin, position))
            kind, begin = own, position
        previous = prefix
    return found


def score_spans(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, SpanMetrics]:
    """Return for each kind of span, and under "" for all, how well those of the sentences were found."""
    correct, found, wanted = (Counter[str]() for _ in range(3))
    for right_tags, predicted_tags in zip(expected, predicted, strict=True):
        right, guessed = set(find_spans(right_tags)), set(find_spans(predicted_tags))
        for counter, spans in ((correct, right & guessed), (found, guessed), (wanted, right)):
            counter.update(span.kind for span in spans)
            counter[""] += len(spans)
    return {kind: _span_metrics(correct[kind], found[kind], wanted[kind]) for kind in sorted({"", *found, *wanted})}


def _span_metrics(correct: int, found: int, wanted: int) -> SpanMetrics:
    precision, recall = (correct / total if total else 0.0 for total in (found, wanted))
    total = precision + recall
    return SpanMetrics(precision, recall, 2 * precision * recall / total if total else 0.0, wanted)


def _split_tag(tag: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash and prefix in _PREFIXES else ("I", tag)
