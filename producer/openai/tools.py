"""The tools of a chat, and which of them an answer must call.

A model that must call a tool is held to it: its answer is what a constraint allows, the arguments of one function or a
list of calls. One that may call tools writes calls in its own words, which the worker reads.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.output_constraints import Constraint
from common.records import Json
from producer.openai.errors import bad_request

#: Parameters of a request about tools.
TOOL_NAMES = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
#: What a function takes that names no parameters.
_NO_PARAMETERS: Mapping[str, Json] = {"type": "object", "properties": {}, "additionalProperties": False}
#: Where a schema may keep the schemas that it refers to.
_DEFINITIONS = ("$defs", "definitions")
#: A reference from the root of a schema, which is elsewhere in the schema of a call.
_OTHER_REF = re.compile(r'"\$ref": "#(?!/(?:\$defs|definitions)/)[^"]*"')


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools."""

    options: dict[str, Json]  #: of the runner
    fields: dict[str, Json]  #: of the record's input
    schema: Json = None  #: of an answer that must be a call


def read_tools(body: Mapping[str, Json]) -> ToolUse:
    """Return what a request says of tools.

    Raises:
        RecordError: `bad_request`, a tool or its schema is not valid, or the choice names a tool that is not there.
    """
    functions = _functions(body.get("tools") or [])
    choice = _choice(body.get("tool_choice"), functions)
    if not functions or choice == "none":  # the model is not told of tools that it may not call
        return ToolUse({}, {})
    several = body.get("parallel_tool_calls")
    if not isinstance(several, bool | None):
        raise bad_request("parallel_tool_calls must be true or false")
    options: dict[str, Json] = {"tools": body["tools"]}
    if choice == "auto":
        return ToolUse(options | {"tool_calls": True}, {"one_call": several is False})
    if choice == "required":
        return ToolUse(options, {"calls": True}, _list_of_calls(functions, several=several is not False))
    name = choice.removeprefix("function ")
    return ToolUse(options, {"function": name}, functions[name])


def _functions(tools: Json) -> dict[str, Json]:
    """Return the schema of each function's parameters, by its name."""
    found: dict[str, Json] = {}
    for tool in tools if isinstance(tools, list) else [None]:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise bad_request(
                'tools must be a list of {"type": "function", "function": {"name": ..., "parameters": {...}}}, '
                f"found {tool!r:.200}"
            )
        if function["name"] in found:
            raise bad_request(f"tools has two functions named {function['name']!r}")
        found[function["name"]] = _parameters(function)
    return found


def _parameters(function: Mapping[str, Json]) -> Json:
    schema = function.get("parameters")
    if schema is None:
        return _NO_PARAMETERS
    where = f"the parameters of the function {function['name']!r}"
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise bad_request(f"{where} must be a JSON schema of an object, found {schema!r:.200}")
    try:
        Constraint("json_schema", schema)
    except ValueError as error:
        raise bad_request(f"{where}: {error}") from error
    return {**schema, "type": "object"}


def _choice(value: Json, functions: Mapping[str, Json]) -> str:
    """Return `none`, `auto`, `required`, or `function NAME`."""
    if value is None:
        return "auto"
    if value in ("none", "auto", "required"):
        if value == "required" and not functions:
            raise bad_request("tool_choice is 'required', and the request has no tools")
        return str(value)
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise bad_request(
            'tool_choice must be none, auto, required or {"type": "function", "function": {"name": ...}}, '
            f"found {value!r:.200}"
        )
    if name not in functions:
        raise bad_request(f"tool_choice names the function {name!r}; tools has {', '.join(functions) or 'none'}")
    return f"function {name}"


def _list_of_calls(functions: Mapping[str, Json], *, several: bool) -> Json:
    """Return the schema of a list of calls: `[{"name": ..., "parameters": {...}}]`."""
    definitions: dict[str, dict[str, Json]] = {}
    calls = [_call(name, schema, definitions) for name, schema in functions.items()]
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"type": "array", "items": items, "minItems": 1, **({} if several else {"maxItems": 1}), **definitions}


def _call(name: str, schema: Mapping[str, Json], definitions: dict[str, dict[str, Json]]) -> Json:
    """Return the schema of one call; the schemas that it refers to are added to the others' definitions."""
    if found := _OTHER_REF.search(json.dumps(schema)):
        raise bad_request(
            f"the parameters of the function {name!r} have {found[0]}; with tool_choice required, a $ref must be to "
            "one of $defs or definitions. Name the function in tool_choice instead"
        )
    for key in _DEFINITIONS:
        shared = definitions.setdefault(key, {}) if schema.get(key) else {}
        for title, part in (schema.get(key) or {}).items():
            if shared.setdefault(title, part) != part:
                raise bad_request(f"two functions in tools have different {key} named {title!r}")
    own = {key: value for key, value in schema.items() if key not in _DEFINITIONS}
    properties: Sequence[tuple[str, Json]] = [("name", {"const": name}), ("parameters", own)]
    required = ["name", "parameters"]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}
