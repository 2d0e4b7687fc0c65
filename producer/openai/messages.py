"""The messages of a chat: of text, of images, and of calls of tools with what they returned."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.records import Json
from producer.openai.data_urls import check_data_url
from producer.openai.errors import bad_request

#: Fields that are not supported, unless they are empty.
_UNSUPPORTED = ("function_call", "audio")


def has_images(messages: Json) -> bool:
    """Whether a part of a message, which may be wrong in any way, is an image."""
    contents = [one.get("content") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, dict) and part.get("type") == "image_url" for part in parts)


def read_messages(body: Mapping[str, Json], *, in_parts: bool) -> list[dict[str, Json]]:
    """Return the messages of a request, as chat templates take them.

    Args:
        body: of the request.
        in_parts: whether the content becomes a list of parts, as templates with images expect it, or a text.

    Raises:
        RecordError: `bad_request`, a message is wrong, or not supported.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list of messages")
    return [_message(message, in_parts) for message in messages]


def _message(message: Json, in_parts: bool) -> dict[str, Json]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad_request('a message must be an object {"role": ..., "content": ...}')
    unsupported = next((name for name in _UNSUPPORTED if message.get(name)), None)
    if unsupported:
        raise bad_request(f"{unsupported} in messages is not supported")
    # Other fields (`name`, `tool_call_id`, `reasoning_content`) are for the model's chat template.
    found = {name: value for name, value in message.items() if value is not None and name not in _UNSUPPORTED}
    calls = found.pop("tool_calls", None)
    if calls:
        found["tool_calls"] = _calls(calls)
    found["role"] = {"developer": "system"}.get(message["role"], message["role"])
    # A message that calls tools need not say anything; templates write None as a word.
    content = "" if calls and message.get("content") is None else message.get("content")
    parts = _parts(content)
    found["content"] = parts if in_parts else "".join(part["text"] for part in parts)
    return found


def _calls(value: Json) -> list[dict[str, Json]]:
    """Return the calls of a message, with their arguments as objects: chat templates read them."""
    try:
        calls: list[dict[str, Any]] = [
            {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in value
        ]
        valid = all(
            isinstance(call["function"]["name"], str) and isinstance(call["function"]["arguments"], dict)
            for call in calls
        )
    except (TypeError, KeyError, ValueError, RecursionError):
        valid = False
    if not valid:
        raise bad_request(
            'tool_calls of a message must be a list of {"id": ..., "type": "function", "function": {"name": ..., '
            '"arguments": TEXT}}, the text a JSON object'
        )
    return calls


def _parts(content: Json) -> Sequence[dict[str, Json]]:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return [_part(part) for part in parts]


def _part(part: Json) -> dict[str, Json]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        image = part.get("image_url")
        url = check_data_url("image_url", image.get("url") if isinstance(image, dict) else image)
        return {"type": "image_url", "image_url": {"url": url}}
    raise bad_request("the content of a message must be text, or parts of text and images (image_url)")
