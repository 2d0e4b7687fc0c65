"""The labels of a training set: of what kind they are, whether they can be learnt, and a fair part to hold out.

The producer applies it to files before anything is submitted, the worker to data sets of the hub.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import UsageError
from common.nearest import did_you_mean
from common.training.spec import LABEL_KINDS, METRICS
from common.values import Json

#: How many names a message lists.
_LISTED = 5
#: More classes than that are hardly classes: a column of texts or ids was named.
_MOST_CLASSES = 10_000

_KINDS = ("classes", "several", "number", "tags", "")

Example = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Labels:
    """What there is to tell apart."""

    kind: str  #: `classes`, `several` (a list of classes each), `number`, `tags`, or `` where nothing is
    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def encode(self) -> dict[str, Json]:
        """Return the JSON object that `decode` takes."""
        return {"kind": self.kind, "names": list(self.names), "warnings": list(self.warnings)}

    @classmethod
    def decode(cls, raw: Mapping[str, Json]) -> "Labels":
        """Return the value of that object.

        Raises:
            UsageError: it is no such object.
        """
        lists = [raw.get("names"), raw.get("warnings")]
        whole = all(isinstance(found, list) and all(isinstance(item, str) for item in found) for found in lists)
        if raw.get("kind") not in _KINDS or not whole:
            raise UsageError(f"expected kind, names and warnings of the labels, found {str(raw)[:80]}")
        return cls(raw["kind"], tuple(raw["names"]), tuple(raw["warnings"]))

    @property
    def words(self) -> str:
        """The labels in a few words."""
        if self.kind == "number":
            return "regression: the labels are numbers with a fraction"
        listed = ", ".join(self.names[:_LISTED]) + (", ..." if len(self.names) > _LISTED else "")
        kinds = {"classes": "labels", "several": "labels, several for each text", "tags": "tags"}
        return f"{len(self.names)} {kinds[self.kind]}: {listed}" if self.kind else ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What an evaluation measures, that first by which the best checkpoint is chosen."""
        return METRICS["entities" if self.kind == "tags" and marks_entities(self.names) else self.kind]


def survey(task: str, examples: Sequence[Example]) -> Labels:
    """Return what the labels of a training set are.

    Raises:
        UsageError: there is nothing to learn from them: no example, or one class alone.
    """
    if task not in LABEL_KINDS:
        raise UsageError(f"{task} cannot be fine-tuned; those that can: {', '.join(LABEL_KINDS)}.")
    if not examples:
        raise UsageError("There is no example to learn from: every text is empty.")
    if task == "token-classification":
        return _tags(examples)
    if task != "text-classification":
        _check_alike(examples)
        return Labels("")
    labels = [example["label"] for example in examples]
    if any(isinstance(label, list) for label in labels):
        return _several(labels)
    if all(isinstance(label, int | float) for label in labels) and any(isinstance(label, float) for label in labels):
        return _numbers(labels)
    return _classes(labels)


def _check_alike(examples: Sequence[Example]) -> None:
    prompted = sum("prompt" in example for example in examples)
    if 0 < prompted < len(examples):
        raise UsageError(
            f"{prompted:,} of {len(examples):,} examples are prompts with what follows them, the others plain texts: "
            "learn from one kind."
        )


def _tags(examples: Sequence[Example]) -> Labels:
    names = {tag for example in examples for tag in example["tags"]}
    if len(names) < 2:
        raise UsageError(f"Every word has the tag {' '.join(names)!r}: there is nothing to tell apart.")
    return Labels("tags", tuple(sorted(names, key=lambda name: (name != "O", name))))


def _several(labels: Sequence[Json]) -> Labels:
    if not all(isinstance(label, list) for label in labels):
        raise UsageError("Some labels are lists and some are not: give every example a list, if need be an empty one.")
    names = sorted({name for label in labels for name in label})
    if len(names) < 2:
        raise UsageError(f"The labels hold {len(names)} class: there is nothing to tell apart.")
    return Labels("several", tuple(names))


def _numbers(labels: Sequence[float]) -> Labels:
    if len(set(labels)) == 1:
        raise UsageError(f"Every example has the label {labels[0]}: there is nothing to learn.")
    return Labels("number")


def _classes(labels: Sequence[Json]) -> Labels:
    counts = Counter(map(str, labels))
    if len(counts) == 1:
        raise UsageError(f"Every example has the label {labels[0]!r}: there is nothing to tell apart.")
    if len(counts) > _MOST_CLASSES:
        raise UsageError(f"There are {len(counts):,} different labels; is that the right --label-column?")
    numbers = all(isinstance(label, int) for label in labels)
    names = sorted(counts, key=int) if numbers else sorted(counts)
    once = [name for name in names if counts[name] == 1]
    warnings = [f"{_listed('label', once)} occurs once: hardly enough to learn from."] if once else []
    return Labels("classes", tuple(names), tuple(warnings))


def check_seen(labels: Labels, examples: Sequence[Example], source: str) -> None:
    """Check that an evaluation set has no label that the training set has not.

    Raises:
        UsageError: it has; or its labels are of another kind.
    """
    if not examples:
        raise UsageError(f"{source} holds no example: every text is empty.")
    if labels.kind in ("", "number"):
        wrong = [e["label"] for e in examples if labels.kind and not isinstance(e["label"], int | float)]
        if wrong:
            raise UsageError(f"{source}: the training set has numbers for labels, here is {wrong[0]!r}.")
        return
    unseen = sorted({name for example in examples for name in names_of(labels, example)} - set(labels.names))
    if unseen:
        raise UsageError(
            f"{source}: {_listed('label', unseen)} does not occur in the training set, which has {labels.words}."
        )


def marks_entities(tags: Sequence[str]) -> bool:
    """Whether tags mark entities of several words, as B-LOC and I-LOC do."""
    return any(tag[:2] in ("B-", "I-") for tag in tags)


def check_metric(task: str, labels: Labels | None, metric: str) -> None:
    """Check that evaluations have that metric; of labels not known yet (None), that those of the task may.

    Raises:
        UsageError: they have not; names the nearest.
    """
    known = labels.metrics if labels else tuple(name for kind in LABEL_KINDS[task] for name in METRICS[kind])
    if metric.removeprefix("eval_") not in known:
        what = f"{task} with {labels.words}" if labels and labels.words else task
        raise UsageError(f"--metric-for-best {metric}: not measured for {what}. {did_you_mean(metric, set(known))}")


def names_of(labels: Labels, example: Example) -> list[str]:
    """Return the names of the classes of one example."""
    value = example["tags"] if labels.kind == "tags" else example["label"]
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def _listed(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_LISTED])) + (f" and {len(names) - _LISTED} more" * (len(names) > _LISTED))
    return f"{noun} {shown}"


def split(
    labels: Labels, examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example], list[str]]:
    """Return the examples to learn from, those held out, and what is to be said of it.

    Classes keep their shares: of each, at least one example is held out and at least one stays; of a class with one
    example, that one stays.

    Raises:
        UsageError: nothing would be left on one side.
    """
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(str(example["label"]) if labels.kind == "classes" else "", []).append(number)
    chosen: set[int] = set()
    shuffled = random.Random(seed)  # noqa: S311 - a fair draw, no secret
    for members in groups.values():
        most = len(members) - 1
        chosen.update(shuffled.sample(members, min(most, max(1, round(share * len(members))))))
    if not chosen:
        raise UsageError(
            f"--eval-split {share:g} leaves no example of any class to evaluate with: of {len(examples)} examples, no "
            "class has two. Give more examples, or an evaluation set with --eval FILE."
        )
    alone = sorted(name for name, members in groups.items() if len(members) == 1)
    said = [f"{_listed('label', alone)} is in no example held out by --eval-split."] if alone else []
    kept = [example for number, example in enumerate(examples) if number not in chosen]
    return kept, [examples[number] for number in sorted(chosen)], said
