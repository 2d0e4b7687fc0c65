"""The JSON schema of a job, from a file or typed as JSON: it becomes a parameter, so that workers open no file."""

import json
from collections.abc import Mapping

from common.errors import UsageError
from common.records import Json
from producer.submit.text_file import read_text


def with_schema(params: Mapping[str, Json]) -> dict[str, Json]:
    """Return the parameters with the schema that `json_schema` names: `@FILE`, or JSON text.

    Raises:
        UsageError: The file cannot be read, or the text is not JSON.
    """
    value = params.get("json_schema")
    if not isinstance(value, str):
        return dict(params)
    is_file = value.startswith("@")
    where = f"-p json_schema={value}" if is_file else "-p json_schema"
    text = read_text(value[1:], "-p json_schema") if is_file else value
    try:
        return {**params, "json_schema": json.loads(text, parse_constant=_refuse)}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}. Expected a JSON schema, or @FILE with one.") from error


def _refuse(constant: str) -> Json:
    raise ValueError(f"{constant} is not a JSON number")
