"""Cells of the rows that training examples are made of: text, and lists, which a table holds as JSON."""

import json

from common.errors import UsageError
from common.records import Json


def text_of(value: Json, column: str, wanted: str = "text") -> str:
    """Return the text in a cell, which may be a number.

    Args:
        value: the cell.
        column: its column, for messages.
        wanted: what the column must hold, for messages.

    Raises:
        UsageError: It is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UsageError(f"the column {column!r} must hold {wanted}, found {json.dumps(value)[:80]}")


def list_of(value: Json) -> Json:
    """Return the list that a cell of a table holds as JSON; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) else value
