"""Entities among tags, and how well they were found: what seqeval counts, which has had no release since 2020."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

#: Before the type in a tag: begins an entity, is one, ends one (as E- and S-, or as L- and U-, are written).
_BEGINS, _ENDS = ("B", "S", "U"), ("E", "L", "S", "U")
_PREFIXES = ("B", "I", *_ENDS)


class Entity(NamedTuple):
    """Tokens `begin` to `end`, which is the first one after it."""

    kind: str
    begin: int
    end: int


class EntityMetrics(NamedTuple):
    """How well the entities of a kind were found; `support` is how many there are."""

    precision: float
    recall: float
    f1: float
    support: int


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities that the tags mark; one that begins without B- counts all the same."""
    found: list[Entity] = []
    before, kind, begin = "O", "", 0
    for place, tag in enumerate((*tags, "O")):
        prefix, own = _split(tag)
        goes_on = prefix != "O" and before != "O" and prefix not in _BEGINS and before not in _ENDS and own == kind
        if goes_on:
            before = prefix
            continue
        if before != "O":
            found.append(Entity(kind, begin, place))
        before, kind, begin = prefix, own, place
    return found


def score_entities(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, EntityMetrics]:
    """Return for each kind of entity, and for all of them under "", how well those of the sentences were found."""
    right, guessed, wanted = (Counter[str]() for _ in range(3))
    for one, other in zip(expected, predicted, strict=True):
        there, claimed = set(find_entities(one)), set(find_entities(other))
        for counter, entities in ((right, there & claimed), (guessed, claimed), (wanted, there)):
            counter.update(entity.kind for entity in entities)
            counter[""] += len(entities)
    return {kind: _found(right[kind], guessed[kind], wanted[kind]) for kind in sorted({"", *guessed, *wanted})}


def _found(right: int, guessed: int, wanted: int) -> EntityMetrics:
    precision, recall = (right / total if total else 0.0 for total in (guessed, wanted))
    both = precision + recall
    return EntityMetrics(precision, recall, 2 * precision * recall / both if both else 0.0, wanted)


def _split(tag: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash and prefix in _PREFIXES else ("I", tag)
