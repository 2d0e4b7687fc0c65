"""Fields of untrusted records, by the tables of `common.tasks`.

`workers.inference.text.tokenization.check_text` checks the texts among them.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from common.errors import RecordError
from common.records import Json
from common.tasks import Task


def parse_fields(task: Task, value: Json) -> dict[str, Json]:
    """Return the fields of a record's input that `task` knows; a plain text is the field `task.primary_field`.

    Raises:
        RecordError: `wrong_type`, neither text nor object; `missing_field`.
    """
    if isinstance(value, str):
        value = {task.primary_field or "text": value}
    if not isinstance(value, Mapping):
        raise RecordError(
            "wrong_type", f"{task.name} needs text or an object with {task.required_fields}; found {_describe(value)}."
        )
    task.build_input(value)
    names = [name for group in task.fields for name in group]
    return {name: value[name] for name in (*names, *task.optional) if value.get(name) is not None}


class _ChatMessage(msgspec.Struct):
    """One message of a chat; other fields are for the chat template."""

    role: str
    content: str | list[Any] | None


_Messages = Annotated[list[_ChatMessage], msgspec.Meta(min_length=1)]


def parse_messages(fields: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Return the messages of a chat.

    Raises:
        RecordError: `wrong_type`, not a list of objects with `role` and `content`.
    """
    messages: list[dict[str, Json]] = fields["messages"]
    try:
        msgspec.convert(messages, _Messages)
    except msgspec.ValidationError as error:
        raise RecordError(
            "wrong_type", f'messages must be a list of objects {{"role": "user", "content": "..."}}: {error}.'
        ) from error
    return messages


def _describe(value: Json) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "null" if value is None else type(value).__name__
