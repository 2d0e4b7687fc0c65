"""Constraints on generated text (structured output): a JSON schema, a regular expression, or a list of choices.

A constraint is a parameter of the job, or of a request of a batch file. What is checked here needs no model: the
producer does so before a job is created. The worker compiles it, which shows whether a text can meet it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from common.errors import ModelError
from common.records import Json
from common.validation import checked, one_of

#: Characters of a constraint as JSON: it is part of the job, which workers read for each chunk.
MAX_LENGTH = 65_536
#: Levels of lists and objects in a schema.
MAX_DEPTH = 64

Kind = Literal["json_schema", "regex", "choices"]
#: The parameters that set a constraint.
KINDS: tuple[Kind, ...] = ("json_schema", "regex", "choices")

_TYPE = Annotated[str, one_of("null", "boolean", "object", "array", "number", "string", "integer")]
_SCHEMAS = Annotated[list[Json], Meta(min_length=1)]
_COUNT = Annotated[int, Meta(ge=0)]
#: What the keywords of a JSON schema may be; any other may be anything.
_KEYWORDS: Mapping[str, Any] = {
    "enum": list[Json],
    "required": list[str],
    **dict.fromkeys(("$ref", "pattern", "format"), str),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), float),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("anyOf", "allOf", "oneOf"), _SCHEMAS),
    "prefixItems": list[Json],
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), dict[str, Json]),
}
#: Keywords whose value is a schema, a list of schemas, or an object of schemas.
_SCHEMA_KEYWORDS = ("additionalProperties", "items", "additionalItems")
_LIST_KEYWORDS = ("anyOf", "allOf", "oneOf", "prefixItems")
_OBJECT_KEYWORDS = ("properties", "patternProperties", "$defs", "definitions")


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a generated text must be."""

    kind: Kind
    value: Json  #: a JSON schema, a regular expression, or a list of texts

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ValueError: the value is too large, or is no JSON schema; the message says where.
        """
        _check_size(self.kind, self.value)
        if self.kind == "json_schema":
            checked(self.value, dict[str, Json], "json_schema")
            _check_schema(self.value, "json_schema")

    @property
    def text(self) -> str:
        """The value as JSON: equal constraints have equal texts."""
        return json.dumps(self.value)


@dataclass(frozen=True, slots=True)
class ConstrainedInput:
    """The input of a record with a constraint of its own, for a runner."""

    input: Json  #: as in the record
    constraint: Constraint


def constraint_of(params: Mapping[str, Json]) -> Constraint | None:
    """Return the constraint among a job's parameters, None if there is none.

    Args:
        params: of the job, each checked by its type.

    Raises:
        ModelError: `bad_param`, there are several, it is too large, or is no JSON schema; or the job asks for texts
            with their prompts.
    """
    given = [kind for kind in KINDS if kind in params]
    if not given:
        return None
    if len(given) > 1:
        raise ModelError("bad_param", f"{' and '.join(given)} each say what the text must be: use only one.")
    kind = given[0]
    if params.get("return_full_text"):
        raise ModelError("bad_param", f"return_full_text=true cannot be combined with {kind}: leave it out.")
    try:
        return Constraint(kind, params[kind])
    except ValueError as error:
        raise ModelError("bad_param", f"{error}.") from error


def _check_size(what: str, value: Json) -> None:
    if _depth_exceeds(value, MAX_DEPTH):
        raise ValueError(f"{what} has more than {MAX_DEPTH} levels of lists and objects")
    try:
        size = len(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if size > MAX_LENGTH:
        raise ValueError(f"{what} may have {MAX_LENGTH:,} characters as JSON, and has {size:,}")


def _depth_exceeds(value: Json, levels: int) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return parts is not None and (levels == 0 or any(_depth_exceeds(part, levels - 1) for part in parts))


def _check_schema(schema: Json, where: str) -> None:
    """Check the values of a schema's keywords, and the schemas in it."""
    if isinstance(schema, bool):
        return
    checked(schema, dict[str, Json], where)
    types = schema.get("type", "object")
    for one in types if isinstance(types, list) else [types]:
        checked(one, _TYPE, f"{where}.type")
    for name, kind in _KEYWORDS.items():
        if name in schema:
            checked(schema[name], kind, f"{where}.{name}")
    for path, part in _schemas_in(schema):
        _check_schema(part, f"{where}.{path}")


def _schemas_in(schema: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """Yield the schemas in a schema, each with its path."""
    for name, value in schema.items():
        if name in _OBJECT_KEYWORDS:
            yield from ((f"{name}.{key}", part) for key, part in value.items())
        elif name in _LIST_KEYWORDS or (name == "items" and isinstance(value, list)):
            yield from ((f"{name}[{number}]", part) for number, part in enumerate(value))
        elif name in _SCHEMA_KEYWORDS:
            yield name, value
