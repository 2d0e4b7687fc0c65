"""The last evaluation, of the model that is kept: its metrics, and what a page shows of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from common.records import Json
from common.training.labels import Example, Labels, class_names_of
from workers.training.trainer.data import Examples
from workers.training.trainer.metrics import confusion_matrix, logits_of, per_class_metrics

#: More classes than that make a table that nobody reads.
_MAX_CLASSES = 30
#: The examples that the model got most wrong: how many are kept, and of each so many characters.
_MAX_EXAMPLES, _MAX_CHARACTERS = 10, 300


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation gave."""

    metrics: dict[str, float] = field(default_factory=dict)
    classes: list[dict[str, Json]] = field(default_factory=list)  #: precision, recall, F1 and support of each
    confusion_matrix: list[list[int]] | None = None  #: how often a class (row) was taken for another (column)
    worst: list[dict[str, Json]] = field(default_factory=list)  #: the examples of the highest loss, with their texts


def evaluate(trainer: Any, examples: Examples, *, evaluates: bool) -> Evaluation:
    """Evaluate the model that is kept."""
    labels = examples.labels
    if not evaluates:
        return Evaluation()
    if not labels.kind:  # the loss is all there is; the logits of a vocabulary would fill the memory
        before = len(trainer.state.log_history)
        measured: dict[str, float] = trainer.evaluate()
        del trainer.state.log_history[before:]  # the history is that of the training alone
        return Evaluation(measured)
    found = _predict(trainer)
    logits, expected = logits_of(found.predictions), found.label_ids
    if labels.kind == "tags":
        return Evaluation(found.metrics, per_class_metrics(labels, logits, expected)[:_MAX_CLASSES])
    few = len(labels.names) <= _MAX_CLASSES
    return Evaluation(
        metrics=found.metrics,
        classes=per_class_metrics(labels, logits, expected)[:_MAX_CLASSES],
        confusion_matrix=confusion_matrix(logits, expected, len(labels.names))
        if few and labels.kind == "classes"
        else None,
        worst=_worst_examples(labels, examples.evaluation, logits, expected),
    )


def _predict(trainer: Any) -> Any:
    """Return what the model gives for the examples to evaluate with, in their own order: not sorted by length."""
    strategy = trainer.args.train_sampling_strategy
    trainer.args.train_sampling_strategy = "random"  # in an evaluation, one after the other
    try:
        return trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    finally:
        trainer.args.train_sampling_strategy = strategy  # the run's arguments are written down


def _worst_examples(labels: Labels, examples: Sequence[Example], logits: Any, expected: Any) -> list[dict[str, Json]]:
    """Return the examples with the highest loss of those that the model got wrong."""
    guessed, right = torch.from_numpy(np.asarray(logits, np.float32)), torch.from_numpy(np.asarray(expected))
    if labels.kind == "number":
        predicted: list[Json] = guessed.reshape(-1).tolist()
        losses = (guessed.reshape(-1) - right.reshape(-1)).abs()
    elif labels.kind == "classes":
        predicted = [labels.names[number] for number in guessed.argmax(-1).tolist()]
        losses = functional.cross_entropy(guessed, right.long(), reduction="none")
    else:
        predicted = [
            ", ".join(name for name, score in zip(labels.names, row, strict=True) if score > 0)
            for row in guessed.tolist()
        ]
        losses = functional.binary_cross_entropy_with_logits(guessed, right.float(), reduction="none").mean(-1)
    rows = [
        {"text": _text(examples[place]), "label": label, "predicted": predicted[place], "loss": losses[place].item()}
        for place in losses.argsort(descending=True).tolist()
        if (label := _label(labels, examples[place])) != predicted[place]
    ]
    return rows[:_MAX_EXAMPLES]


def _text(example: Example) -> str:
    text = " | ".join(filter(None, (example["text"], example.get("text_pair"))))
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."


def _label(labels: Labels, example: Example) -> Json:
    if labels.kind == "number":
        return example["label"]
    chosen = class_names_of(labels, example)
    return ", ".join(name for name in labels.names if name in chosen)
