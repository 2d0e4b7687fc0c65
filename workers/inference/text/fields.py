"""Fields of untrusted records, by the tables of `common.tasks`.

`workers.inference.text.tokenization.check_text` checks the texts among them.
"""

from collections.abc import Mapping

from common.errors import RecordError
from common.records import Json
from common.tasks import Task


def parse_fields(task: Task, value: Json) -> dict[str, Json]:
    """Return the fields of a record's input that `task` knows; a bare text is the field `task.bare`.

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


def parse_messages(fields: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Return the messages of a chat.

    Raises:
        RecordError: `wrong_type`, not a list of objects with `role` and `content`.
    """
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise RecordError("wrong_type", f"messages must be a list of messages, found {_describe(messages)}.")
    for number, message in enumerate(messages):
        if not _is_message(message):
            raise RecordError(
                "wrong_type",
                f'message {number} must be an object {{"role": "user", "content": "..."}}, found {_describe(message)}.',
            )
    return messages


def _is_message(message: Json) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and "content" in message
        and isinstance(message["content"], str | list | None)
    )


def _describe(value: Json) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "null" if value is None else type(value).__name__
