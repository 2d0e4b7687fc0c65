"""Kinds of parameters, and the check of a job's parameters against those that a task knows.

Knows no task: each brings its own table from parameter to kind.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.errors import ModelError
from common.values import Json


@dataclass(frozen=True, slots=True)
class Kind:
    """What a parameter may be."""

    words: str  #: for people: "must be ..."
    accepts: Callable[[Json], bool]


def _number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Json) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _string(value: Json) -> bool:
    return isinstance(value, str) and bool(value)


def _texts(value: Json) -> bool:
    return _text(value) or (isinstance(value, list) and bool(value) and all(_text(item) for item in value))


def one_of(*words: str) -> Kind:
    """Return the kind of a word out of these."""
    return Kind(f"one of {', '.join(words)}", lambda value: value in words)


def either(kind: Kind, *values: Json) -> Kind:
    """Return a kind that also takes one of `values` (None, True, "never")."""
    named = ", ".join("null" if value is None else str(value).lower() for value in values)

    def accepts(value: Json) -> bool:
        return kind.accepts(value) or any(type(value) is type(other) and value == other for other in values)

    return Kind(f"{kind.words}, or {named}", accepts)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", _whole)
COUNT = Kind("a whole number of at least 1", lambda value: _whole(value) and value >= 1)
COUNT_OR_ZERO = Kind("a whole number of at least 0", lambda value: _whole(value) and value >= 0)
NUMBER = Kind("a number", _number)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind("a text, or a list of texts", _texts)
STRINGS = Kind(
    "a text, or a list of texts, none of them empty",
    lambda value: (isinstance(value, list) and bool(value) and all(map(_string, value))) or _string(value),
)
WHOLES = Kind("a list of whole numbers", lambda value: isinstance(value, list) and all(map(_whole, value)))
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def check_params(task: str, known: Mapping[str, Kind], params: Mapping[str, Json]) -> None:
    """Check names and kinds of `params`.

    Raises:
        ModelError: `bad_param`, naming the nearest known parameters, or what was expected.
    """
    for name, value in params.items():
        if name not in known:
            raise ModelError("bad_param", f"{task} has no parameter {name!r}. {_nearest(name, known)}")
        if not known[name].accepts(value):
            raise ModelError("bad_param", f"{name} must be {known[name].words}, found {value!r}.")


def _nearest(name: str, known: Mapping[str, Kind]) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=2, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"It has: {', '.join(sorted(known))}." if known else "It has none."
