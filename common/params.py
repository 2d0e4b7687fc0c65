"""Parameter types: which values are valid, and how the text of `-p NAME=VALUE` is parsed.

`common.task_params` declares the parameters of each task.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from common.errors import ModelError, UsageError
from common.records import Json
from common.suggestions import did_you_mean

#: The range of integers in torch.
_INT64 = 2**63
#: The range of numbers; integers of Python can be larger than any float.
_MAX_FLOAT = sys.float_info.max

_BOOLEANS: Mapping[str, Json] = {"true": True, "false": False}


def parse_untyped(text: str) -> Json:
    """Parse the value of an undeclared parameter: JSON if the text is JSON, else the text itself."""
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # json.loads also accepts NaN and Infinity, which no parameter does.
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _same(value: Json) -> Json:
    return value


@dataclass(frozen=True, slots=True)
class ParamType:
    """The valid values of a parameter."""

    description: str  #: for people: "must be ..."
    accepts: Callable[[Json], bool]
    parse: Callable[[str], Json] = parse_untyped  #: the text of `-p NAME=VALUE`; the result may be invalid
    convert: Callable[[Json], Json] = _same  #: an accepted value to the form that the libraries take


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_FLOAT <= value <= _MAX_FLOAT


def _is_integer(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64


def _is_text(value: Json) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_string(value: Json) -> bool:
    return isinstance(value, str) and bool(value)


def _one_or_more(accepts: Callable[[Json], bool]) -> Callable[[Json], bool]:
    return lambda value: accepts(value) or (isinstance(value, list) and bool(value) and all(map(accepts, value)))


def _parse_texts(text: str) -> Json:
    """Parse a JSON list, with its numbers as strings; return any other text unchanged."""
    try:
        value = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def integer(minimum: int | None = None) -> ParamType:
    """Return the type of an integer of at least `minimum`."""
    if minimum is None:
        return ParamType("a whole number", _is_integer)
    return ParamType(f"a whole number of at least {minimum}", lambda value: _is_integer(value) and value >= minimum)


def number(minimum: float = -math.inf, maximum: float = math.inf, *, above: float = -math.inf) -> ParamType:
    """Return the type of a number from `minimum` (or above `above`) to `maximum`."""
    description = "a number"
    if above > -math.inf:
        description += f" above {above:g}" + (f", at most {maximum:g}" if maximum < math.inf else "")
    elif minimum > -math.inf:
        description += f" from {minimum:g} to {maximum:g}" if maximum < math.inf else f" of at least {minimum:g}"

    def accepts(value: Json) -> bool:
        return _is_number(value) and minimum <= value <= maximum and value > above

    return ParamType(description, accepts, convert=float)  # the logits warpers of transformers refuse integers


def choice(*description: str) -> ParamType:
    """Return the type of one of these words."""
    return ParamType(f"one of {', '.join(description)}", lambda value: value in description, parse=str)


def either(kind: ParamType, *values: Json) -> ParamType:
    """Return a type that also accepts one of `values` (None, True, "never")."""
    named = ", ".join("null" if value is None else str(value).lower() for value in values)

    def is_value(value: Json) -> bool:
        return any(type(value) is type(other) and value == other for other in values)

    def parse(text: str) -> Json:
        value = kind.parse(text)
        if kind.accepts(value):
            return value
        return None if None in values and text.lower() in ("null", "none") else parse_untyped(text)

    return ParamType(
        f"{kind.description}, or {named}",
        lambda value: kind.accepts(value) or is_value(value),
        parse,
        lambda value: value if is_value(value) else kind.convert(value),
    )


def list_of(description: str, accepts: Callable[[Json], bool]) -> ParamType:
    """Return the type of a list of accepted items."""
    return ParamType(f"a list of {description}", lambda value: isinstance(value, list) and all(map(accepts, value)))


BOOLEAN = ParamType("true or false", lambda value: isinstance(value, bool))
INTEGER = integer()
POSITIVE_INTEGER = integer(1)
NON_NEGATIVE_INTEGER = integer(0)
NUMBER = number()
FRACTION = number(0, 1)
POSITIVE_NUMBER = number(above=0)
TEXT = ParamType("text", lambda value: isinstance(value, str), parse=str)
NON_BLANK_TEXT = ParamType("a text that is not blank", _is_text, parse=str)
TEXTS = ParamType("a text, or a list of texts", _one_or_more(_is_text), _parse_texts)
STRINGS = ParamType("a text, or a list of texts, none of them empty", _one_or_more(_is_string), _parse_texts)
LIST_OF_TEXTS = ParamType(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    _parse_texts,
)
TOKEN_IDS = list_of("token ids", NON_NEGATIVE_INTEGER.accepts)
OBJECTS = list_of("objects", lambda value: isinstance(value, dict))
OBJECT = ParamType("an object", lambda value: isinstance(value, dict))


def parse_params(options: Iterable[str], declared: Mapping[str, ParamType] | None = None) -> dict[str, Json]:
    """Parse the parameters of `-p NAME=VALUE` options by their declared types.

    Args:
        options: the texts after `-p`.
        declared: the types by name; None if unknown: JSON is parsed, anything else is text.

    Raises:
        UsageError: an option has no `=` or no name.
    """
    parsed: dict[str, Json] = {}
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"-p {option!r}: expected KEY=VALUE, for example top_k=3.")
        kind = (declared or {}).get(name)
        parsed[name] = kind.parse(text) if kind else parse_untyped(text)
    return parsed


def check_params(owner: str, declared: Mapping[str, ParamType], params: Mapping[str, Json]) -> dict[str, Json]:
    """Check `params` and return them in the form that the libraries take.

    Args:
        owner: the task they belong to, for messages.
        declared: the types by name.
        params: of a job or a record; untrusted.

    Raises:
        ModelError: `bad_param`, with similar parameter names or what was expected.
    """
    checked: dict[str, Json] = {}
    for name, value in params.items():
        if name not in declared:
            near = did_you_mean(name.lower().replace("-", "_"), declared)
            raise ModelError("bad_param", f"{owner} has no parameter {name!r}. {near}")
        if not declared[name].accepts(value):
            raise ModelError("bad_param", f"{name} must be {declared[name].description}, found {value!r:.200}.")
        checked[name] = declared[name].convert(value)
    return checked
