"""Final evaluation of the model that is kept: its metrics, and the tables and examples of the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from common.records import Json
from common.training.kinds import Example
from common.training.labels import Labels, class_names_of
from workers.training.trainer.data import Examples
from workers.training.trainer.metrics import confusion_matrix, logits_of, per_class_metrics

#: With more classes, the table would be too large to read.
_MAX_CLASSES = 30
#: How many of the examples with the highest loss are kept, and how many characters of each.
_MAX_EXAMPLES, _MAX_CHARACTERS = 10, 300


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of an evaluation."""

    metrics: dict[str, float] = field(default_factory=dict)
    classes: list[dict[str, Json]] = field(default_factory=list)  #: precision, recall, F1 and support of each
    confusion_matrix: list[list[int]] | None = None  #: how often a class (row) was predicted as another (column)
    worst: list[dict[str, Json]] = field(default_factory=list)  #: the wrong predictions with the highest loss


def evaluate(trainer: Any, examples: Examples) -> Evaluation:
    """Evaluate the model that is kept."""
    labels = examples.labels
    if not examples.eval:
        return Evaluation()
    if not labels.are_given:  # the trainer measures: the logits of a whole vocabulary would fill the memory
        before = len(trainer.state.log_history)
        measured: dict[str, float] = trainer.evaluate()
        del trainer.state.log_history[before:]  # the history is that of the training
        return Evaluation(measured)
    found = _predict(trainer)
    logits, expected = logits_of(found.predictions), found.label_ids
    classes = per_class_metrics(labels, logits, expected)[:_MAX_CLASSES]
    if labels.kind == "tags":
        return Evaluation(found.metrics, classes)
    has_matrix = labels.kind == "single_label" and len(labels.names) <= _MAX_CLASSES
    return Evaluation(
        metrics=found.metrics,
        classes=classes,
        confusion_matrix=confusion_matrix(logits, expected, len(labels.names)) if has_matrix else None,
        worst=_worst_examples(labels, examples.eval, logits, expected),
    )


def _predict(trainer: Any) -> Any:
    """Return the predictions for the evaluation set, in its own order instead of by length."""
    strategy = trainer.args.train_sampling_strategy
    trainer.args.train_sampling_strategy = "random"  # which an evaluation reads as sequential
    try:
        return trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    finally:
        trainer.args.train_sampling_strategy = strategy  # the arguments go into the model card


def _worst_examples(labels: Labels, examples: Sequence[Example], logits: Any, expected: Any) -> list[dict[str, Json]]:
    """Return the wrongly predicted examples with the highest loss."""
    scores, right = torch.from_numpy(np.asarray(logits, np.float32)), torch.from_numpy(np.asarray(expected))
    if labels.kind == "regression":
        predicted: list[Json] = scores.reshape(-1).tolist()
        losses = (scores.reshape(-1) - right.reshape(-1)).abs()
    elif labels.kind == "single_label":
        predicted = [labels.names[number] for number in scores.argmax(-1).tolist()]
        losses = functional.cross_entropy(scores, right.long(), reduction="none")
    else:
        rows = [zip(labels.names, row, strict=True) for row in scores.tolist()]
        predicted = [", ".join(name for name, score in row if score > 0) for row in rows]
        losses = functional.binary_cross_entropy_with_logits(scores, right.float(), reduction="none").mean(-1)
    found = [
        {"text": _text(examples[index]), "label": label, "predicted": predicted[index], "loss": losses[index].item()}
        for index in losses.argsort(descending=True).tolist()
        if (label := _label(labels, examples[index])) != predicted[index]
    ]
    return found[:_MAX_EXAMPLES]


def _text(example: Example) -> str:
    text = " | ".join(filter(None, (example["text"], example.get("text_pair"))))
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."


def _label(labels: Labels, example: Example) -> Json:
    if labels.kind == "regression":
        return example["label"]
    chosen = class_names_of(labels, example)
    return ", ".join(name for name in labels.names if name in chosen)
