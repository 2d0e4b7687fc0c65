"""Labels of a training set: their kind, whether they can be learned, and a stratified split.

The producer applies it to files before it submits anything, the worker to datasets on the Hub.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import UsageError
from common.records import Json
from common.training.kinds import PAIR_KINDS, TASK_KINDS, UNLABELED, Example, ExampleKind, common_kind
from common.training.text_pairs import check_same_columns, check_scores_differ, choose_held_out

#: Names that a message lists.
_MAX_LISTED = 5
#: More classes than this are unlikely: the column probably holds texts or ids.
_MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes, or the other kind of labels."""

    kind: ExampleKind
    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    multi_hot: bool = False  #: of `multi_label`: each list holds a 0 or 1 for every class, instead of names

    @property
    def are_given(self) -> bool:
        """Whether the examples have labels, rather than text alone."""
        return self.kind not in UNLABELED

    @property
    def description(self) -> str:
        """The labels in a few words."""
        if self.kind == "regression":
            return "regression: the labels are numbers with a fraction"
        if not self.are_given:
            return UNLABELED[self.kind] if self.kind else ""
        several = "labels, each 0 or 1 for each text" if self.multi_hot else "labels, several for each text"
        nouns = {"single_label": "labels", "multi_label": several, "tags": "tags"}
        return f"{len(self.names)} {nouns[self.kind]}: {_names(self.names)}"


def infer_labels(task: str, examples: Sequence[Example]) -> Labels:
    """Return the labels of a training set.

    Raises:
        UsageError: There is nothing to learn: no example, or only one class.
    """
    if task not in TASK_KINDS:
        raise UsageError(f"{task} cannot be fine-tuned; those that can: {', '.join(TASK_KINDS)}.")
    if not examples:
        raise UsageError(f"There are no examples to learn from: {_all_empty(task)}.")
    if task == "token-classification":
        return _tags(examples)
    if task != "text-classification":
        kind = common_kind(examples)
        check_same_columns(examples)
        check_scores_differ(examples)
        return Labels(kind)
    labels = [example["label"] for example in examples]
    if any(isinstance(label, list) for label in labels):
        return _multi_label(labels)
    if all(isinstance(label, int | float) for label in labels) and not all(map(_is_whole, labels)):
        return _regression(labels)
    return _single_label(labels)


def _tags(examples: Sequence[Example]) -> Labels:
    names = {tag for example in examples for tag in example["tags"]}
    if len(names) < 2:
        raise UsageError(f"Every word has the tag {' '.join(names)!r}: there is only one class to learn.")
    return Labels("tags", tuple(sorted(names, key=lambda name: (name != "O", name))))


def _multi_label(labels: Sequence[Json]) -> Labels:
    if not all(isinstance(label, list) for label in labels):
        raise UsageError("Some labels are lists and some are not: give every example a list, even if it is empty.")
    if _are_multi_hot(labels):
        return _multi_hot(labels)
    for label in labels:
        if len(set(label)) < len(label) and all(map(_is_bit, label)):
            raise UsageError(f"The label {label} looks like a 0 or 1 for each class, but others have another length.")
    names = _sorted({_name(item) for label in labels for item in label})
    if len(names) < 2:
        raise UsageError(f"The labels hold {len(names)} class: at least two are needed.")
    return Labels("multi_label", names)


def _are_multi_hot(labels: Sequence[list[Json]]) -> bool:
    """Whether each list holds a 0 or 1 for every class, rather than names of classes."""
    longest = len(labels[0])
    return longest > 1 and all(len(label) == longest and all(map(_is_bit, label)) for label in labels)


def _multi_hot(labels: Sequence[list[Json]]) -> Labels:
    """Return the classes with transformers' default names."""
    if all(label == labels[0] for label in labels):
        raise UsageError(f"Every example has the label {labels[0]}: there is nothing to learn.")
    names = tuple(f"LABEL_{number}" for number in range(len(labels[0])))
    used = {name for label in labels for name, bit in zip(names, label, strict=True) if bit}
    unused = [name for name in names if name not in used]
    warnings = [f"{_listed('label', unused)} is 0 in every example."] if unused else []
    return Labels("multi_label", names, tuple(warnings), multi_hot=True)


def _regression(labels: Sequence[float]) -> Labels:
    if len(set(labels)) == 1:
        raise UsageError(f"Every example has the label {labels[0]}: there is nothing to learn.")
    return Labels("regression")


def _single_label(labels: Sequence[Json]) -> Labels:
    counts = Counter(map(_name, labels))
    if len(counts) == 1:
        raise UsageError(f"Every example has the label {labels[0]!r}: there is only one class to learn.")
    if len(counts) > _MAX_CLASSES:
        raise UsageError(f"There are {len(counts):,} different labels; is that the right --label-column?")
    names = _sorted(counts)
    once = [name for name in names if counts[name] == 1]
    warnings = [f"{_listed('label', once)} occurs once: hardly enough to learn from."] if once else []
    return Labels("single_label", names, tuple(warnings))


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in order, integers by value."""
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def _is_whole(label: Json) -> bool:
    return isinstance(label, int) or (isinstance(label, float) and label.is_integer())


def _is_bit(item: Json) -> bool:
    return isinstance(item, bool | int | float) and item in (0, 1)


def _name(label: Json) -> str:
    """Return the name of a class: `1` for 1 and for 1.0, which pandas makes of 1 in a column with empty cells."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _all_empty(task: str) -> str:
    return f"every text{' or answer' if task == 'text-generation' else ''} is empty"


def check_labels_known(labels: Labels, examples: Sequence[Example], source: str) -> None:
    """Check that an evaluation set has only labels of the training set.

    Raises:
        UsageError: It has others, or its labels are of another kind.
    """
    if not examples:
        raise UsageError(f"{source} holds no example: every text is empty.")
    if not labels.are_given:
        _check_kind(labels.kind, examples, source)
        return
    if labels.kind == "regression":
        wrong = [e["label"] for e in examples if not isinstance(e["label"], int | float)]
        if wrong:
            raise UsageError(f"{source}: the training set has numeric labels; found {wrong[0]!r}.")
        return
    try:
        seen = {name for example in examples for name in class_names_of(labels, example)}
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    unseen = sorted(seen - set(labels.names))
    if unseen:
        raise UsageError(
            f"{source}: {_listed('label', unseen)} does not occur in the training set, which has {labels.description}."
        )


def _check_kind(kind: str, examples: Sequence[Example], source: str) -> None:
    """Check that an evaluation set without labels is of the kind of the training set; a bit is a grade too."""
    try:
        found = common_kind(examples)
        check_same_columns(examples)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    if found != kind and (found, kind) != ("relevance", "graded_relevance"):
        raise UsageError(f"{source}: the training set has {UNLABELED[kind]}; found {UNLABELED[found]}.")


def uses_bio_tags(tags: Sequence[str]) -> bool:
    """Whether tags mark entities of several words, such as B-LOC and I-LOC."""
    return any(tag[:2] in ("B-", "I-") for tag in tags)


def class_names_of(labels: Labels, example: Example) -> list[str]:
    """Return the class names of one example.

    Raises:
        UsageError: Its label is of another kind than the training set's.
    """
    value = example["tags"] if labels.kind == "tags" else example["label"]
    if labels.multi_hot:
        if not isinstance(value, list) or len(value) != len(labels.names) or not all(map(_is_bit, value)):
            raise UsageError(f"expected {len(labels.names)} numbers, each 0 or 1, as a label, found {str(value)[:80]}")
        return [name for name, bit in zip(labels.names, value, strict=True) if bit]
    if labels.kind == "single_label" and isinstance(value, list):
        raise UsageError(f"expected one label, found {str(value)[:80]}")
    return [_name(item) for item in value] if isinstance(value, list) else [_name(value)]


def align_labels(labels: Labels, known: Sequence[str]) -> tuple[Labels, str]:
    """Return the labels in the order of a base model's `known` classes, and a note for the user.

    A head keeps what it has learned only if its classes keep their positions. Classes that occur in no example are
    kept; names that differ only in case are the same.
    """
    if labels.kind == "regression" or not labels.are_given or not known or labels.names == tuple(known):
        return labels, ""
    if labels.multi_hot and len(labels.names) == len(known):
        return replace(labels, names=tuple(known)), ""
    names = None if labels.multi_hot else _match_ignoring_case(labels.names, known)
    if names is None:
        return labels, f"The base model has other classes ({_names(known)}): those of the examples replace them."
    missing = [name for name in names if name not in labels.names]
    note = f"The base model's {_listed('label', missing)} does not occur in the examples." if missing else ""
    return replace(labels, names=names), note


def _match_ignoring_case(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...] | None:
    """Return `known` with the names as they are written in `names`; None if they are other classes."""
    own = {name.casefold(): name for name in names}
    folded = [name.casefold() for name in known]
    if len(own) < len(names) or len(set(folded)) < len(folded) or not own.keys() <= set(folded):
        return None
    return tuple(own.get(fold, name) for fold, name in zip(folded, known, strict=True))


def _listed(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_MAX_LISTED])) + (
        f" and {len(names) - _MAX_LISTED} more" * (len(names) > _MAX_LISTED)
    )
    return f"{noun} {shown}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")


def split_train_eval(
    labels: Labels, examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example], list[str]]:
    """Return training examples, examples held out for evaluation, and notes for the user.

    The split is stratified: at least one example of each class is held out and at least one is kept; the only example
    of a class is kept. Of pairs, all with the same first text are held out, or none.

    Raises:
        UsageError: Nothing could be held out.
    """
    groups = _groups(labels, examples)
    chosen = choose_held_out(examples, share, seed) if labels.kind in PAIR_KINDS else _stratified(groups, share, seed)
    if not chosen:
        raise UsageError(
            f"--eval-split {share:g} leaves no example to evaluate with: {_indivisible(labels, examples)}. Give more "
            "examples, or an evaluation set with --eval FILE."
        )
    single = sorted(name for name, members in groups.items() if len(members) == 1)
    notes = [f"{_listed('label', single)} is in no example held out by --eval-split."] if single else []
    kept = [example for number, example in enumerate(examples) if number not in chosen]
    return kept, [examples[number] for number in sorted(chosen)], notes


def _indivisible(labels: Labels, examples: Sequence[Example]) -> str:
    if len(examples) == 1:
        return "there is only one"
    return "all have the same first text" if labels.kind in PAIR_KINDS else "no class has two"


def _groups(labels: Labels, examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return the numbers of the examples of each class; of all, where there is one label out of several at most."""
    groups: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        name = class_names_of(labels, example)[0] if labels.kind == "single_label" else ""
        groups.setdefault(name, []).append(number)
    return groups


def _stratified(groups: Mapping[str, Sequence[int]], share: float, seed: int) -> set[int]:
    chosen: set[int] = set()
    shuffled = random.Random(seed)  # noqa: S311 - not a secret
    for members in groups.values():
        most = len(members) - 1
        chosen.update(shuffled.sample(members, min(most, max(1, round(share * len(members))))))
    return chosen
