"""What the answer to a request must be: `response_format` of the API, and `structured_outputs` of vLLM."""

from collections.abc import Mapping

from common.output_constraints import Constraint, Kind
from common.records import Json
from producer.openai.errors import bad_request

#: Parameters of a request that set a constraint.
CONSTRAINT_NAMES = frozenset({"response_format", "structured_outputs"})
#: vLLM's names.
_STRUCTURED_OUTPUTS: Mapping[str, Kind] = {"json": "json_schema", "regex": "regex", "choice": "choices"}
#: Parameters that could end an answer before it is complete, or require more after it is.
_CONFLICTING = ("stop", "min_tokens")


def constraint_of_request(body: Mapping[str, Json], call: Json = None) -> dict[str, Json]:
    """Return the field `constraint` of a record's input; nothing if any text will do.

    Args:
        body: of the request.
        call: the schema of an answer that has to call a tool.

    Raises:
        RecordError: `bad_request`, the constraint is not valid, or conflicts with another parameter.
    """
    asked: dict[str, tuple[Kind, Json] | None] = {
        "response_format": _response_format(body),
        "structured_outputs": _structured_outputs(body),
        "tool_choice": None if call is None else ("json_schema", call),
    }
    found = {name: one for name, one in asked.items() if one is not None}
    if not found:
        return {}
    if len(found) > 1:
        raise bad_request(f"{' and '.join(found)} each say what the answer must be: use only one")
    [(name, (kind, value))] = found.items()
    if conflict := next((name for name in _CONFLICTING if body.get(name)), None):
        raise bad_request(f"{conflict} cannot be combined with {name}")
    try:
        return {"constraint": {"kind": kind, "value": Constraint(kind, value).value}}
    except ValueError as error:
        raise bad_request(str(error)) from error


def _response_format(body: Mapping[str, Json]) -> tuple[Kind, Json] | None:
    value = body.get("response_format")
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return "json_schema", {"type": "object"}
    named = value.get("json_schema") if kind == "json_schema" else None
    if not isinstance(named, dict) or "schema" not in named:
        raise bad_request(
            'response_format must be {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", '
            f'"json_schema": {{"name": ..., "schema": {{...}}}}}}, found {value!r:.200}'
        )
    return "json_schema", named["schema"]


def _structured_outputs(body: Mapping[str, Json]) -> tuple[Kind, Json] | None:
    value = body.get("structured_outputs")
    if value is None:
        return None
    given = {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else {}
    if len(given) != 1 or not given.keys() <= _STRUCTURED_OUTPUTS.keys():
        raise bad_request(
            f"structured_outputs must be an object with one of {', '.join(_STRUCTURED_OUTPUTS)}, found {value!r:.200}"
        )
    [(name, one)] = given.items()
    return _STRUCTURED_OUTPUTS[name], one
