"""Training examples of text-generation that are conversations: chats, and preferences between two answers.

The producer applies it to files before it submits anything, the worker to datasets on the Hub.
"""

import json
from collections.abc import Mapping, Sequence

from common.chat import user_message
from common.errors import UsageError
from common.records import Json
from common.training.cells import list_of, text_of
from common.training.kinds import Example

#: The columns of a preference, besides an optional `prompt`.
CHOSEN, REJECTED = "chosen", "rejected"
#: A field beside a chat: JSON schemas of the functions that the assistant may call, for its chat template.
TOOLS = "tools"

Message = dict[str, Json]


def make_chat(row: Mapping[str, Json], column: str) -> dict[str, Json]:
    """Return the chat in a column as an example: its messages, of which the assistant's are learned.

    Raises:
        UsageError: It is malformed, or does not end with the assistant.
    """
    messages = _messages(row[column], column)
    _check_last(messages, column)
    return {"messages": messages, **_tools(row)}


def make_preference(row: Mapping[str, Json]) -> dict[str, Json]:
    """Return a preference as an example: a prompt and two answers, all three as text or as messages.

    Without a prompt, it is the messages that both answers begin with.

    Raises:
        UsageError: One is missing or malformed, or the answers are the same.
    """
    chosen, rejected = (_text_or_messages(row[name], name) for name in (CHOSEN, REJECTED))
    if chosen == rejected:
        raise UsageError(f"{CHOSEN!r} and {REJECTED!r} are the same: there is nothing to prefer")
    prompt = None if row.get("prompt") is None else _text_or_messages(row["prompt"], "prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not isinstance(prompt, str):
            raise UsageError(f"the answers are text, and the prompt is {_kind(prompt)}: expected text in 'prompt'")
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise UsageError(f"{CHOSEN!r} is {_kind(chosen)} and {REJECTED!r} is {_kind(rejected)}: expected one kind")
    else:
        prompt, chosen, rejected = _split_prompt(prompt, chosen, rejected)
    return {"prompt": prompt, CHOSEN: chosen, REJECTED: rejected, **_tools(row)}


def has_no_answer(messages: Sequence[Message]) -> bool:
    """Whether the assistant says nothing in a chat."""
    answers = [message for message in messages if message["role"] == "assistant"]
    return not any(answer.get("tool_calls") or (answer.get("content") or "").strip() for answer in answers)


def has_empty_part(preference: Example) -> bool:
    """Whether the prompt or an answer of a preference is blank."""
    prompt, *answers = (preference[name] for name in ("prompt", CHOSEN, REJECTED))
    if isinstance(prompt, str):
        return not all(text.strip() for text in (prompt, *answers))
    return any(map(has_no_answer, answers))


def _split_prompt(
    prompt: Json, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Return the messages of the prompt and of both answers."""
    shared = chosen[: common_length(chosen, rejected)]
    if isinstance(prompt, str):
        prompt = [] if any(message.get("content") == prompt for message in shared) else user_message(prompt)
    before: list[Message] = prompt or []
    begun = shared if shared[: len(before)] == before else [*before, *shared]  # a prompt may be in the answers too
    chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
    if not begun:
        raise UsageError(
            f"{CHOSEN!r} and {REJECTED!r} begin with different messages: expected the same prompt in both, or a column "
            "'prompt'"
        )
    if begun[-1]["role"] == "assistant":
        raise UsageError("the prompt ends with a message of the assistant: expected one of the user, to be answered")
    for name, answer in ((CHOSEN, chosen), (REJECTED, rejected)):
        if not answer or answer[0]["role"] != "assistant":
            found = f"a message of the role {answer[0]['role']!r}" if answer else "nothing"
            raise UsageError(f"{name!r} continues the prompt with {found}: expected an answer of the assistant")
        _check_last(answer, name)
    return begun, chosen, rejected


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many items two sequences have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))


def _check_last(messages: Sequence[Message], column: str) -> None:
    role = messages[-1]["role"]
    if role != "assistant":
        raise UsageError(
            f"the last message of {column!r} is of the role {role!r}: expected 'assistant', whose words are learned"
        )


def _text_or_messages(value: Json, column: str) -> str | list[Message]:
    if isinstance(value, list) or (isinstance(value, str) and _parsed(value) is not None):
        return _messages(value, column)
    return text_of(value, column, "text or messages")


def _messages(value: Json, column: str) -> list[Message]:
    found = _parsed(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        wanted = '[{"role": "user", "content": "..."}, ...]'
        raise UsageError(f"the column {column!r} must hold messages, {wanted}, found {_shown(value)}")
    return [_message(message, f"message {number} of {column!r}") for number, message in enumerate(found, 1)]


def _message(message: Json, name: str) -> Message:
    if not isinstance(message, dict):
        raise UsageError(f"{name} is {_shown(message)}: expected an object with role and content")
    present = {key: value for key, value in message.items() if value is not None}  # a table fills in the others' keys
    role, content = present.get("role"), present.get("content")
    if not isinstance(role, str) or not role:
        keys = ", ".join(map(repr, message)) or "nothing"
        raise UsageError(f"{name} has no role, which must be a word such as 'user' or 'assistant'; it has {keys}")
    if not isinstance(content, str) and not (content is None and present.get("tool_calls")):
        raise UsageError(f"{name} must have text as its content, found {_shown(content)}")
    return present


def _tools(row: Mapping[str, Json]) -> dict[str, Json]:
    found = row.get(TOOLS)
    if found is None or found == "":
        return {}
    tools = list_of(found)
    if tools == []:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UsageError(f"the column {TOOLS!r} must hold a list of JSON schemas, found {_shown(found)}")
    return {TOOLS: tools}


def _parsed(text: str) -> Json:
    """Return the list of objects that a cell of a table holds as JSON; None for any other text."""
    found = list_of(text)
    return found if isinstance(found, list) and all(isinstance(item, dict) for item in found) else None


def _kind(value: Json) -> str:
    return "missing" if value is None else "text" if isinstance(value, str) else "messages"


def _shown(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]
