"""Chats of text-generation: whether a plain text is asked as a user's message, and the messages that it becomes.

Both are parameters of the job (`chat`, `system`), so that no record carries the system message.
"""

from collections.abc import Mapping, Sequence

from common.errors import ModelError
from common.records import Json

#: The task that has chats.
TASK = "text-generation"
#: Roles of a first message that a job's own system message does not precede.
_SYSTEM_ROLES = ("system", "developer")


def is_chat(params: Mapping[str, Json]) -> bool:
    """Return whether plain texts are asked as messages: by `chat`, or because there is a `system` message.

    Args:
        params: of the job, each checked by its type.

    Raises:
        ModelError: `bad_param`, parameters conflict.
    """
    system = params.get("system")
    chat: bool = params.get("chat", system is not None)
    if system is not None and not chat:
        raise ModelError(
            "bad_param", "system is the first message of a chat, and chat is false. Leave one of them out."
        )
    if chat and params.get("prefix"):
        raise ModelError(
            "bad_param",
            "prefix is put before raw text, and this is a chat. Use system (--system), or chat=false (--no-chat).",
        )
    return chat


def check_tool_calls(params: Mapping[str, Json]) -> None:
    """Check the parameters of a job whose texts may call tools.

    Args:
        params: of the job, each checked by its type.

    Raises:
        ModelError: `bad_param`, parameters conflict, or a tool has no name.
    """
    if not params.get("tool_calls"):
        return
    if not params.get("tools"):
        raise ModelError("bad_param", "tool_calls needs tools, the functions that a text may call.")
    if not all(isinstance(tool_name(tool), str) for tool in params["tools"]):
        raise ModelError(
            "bad_param", 'tools must be a list of objects {"type": "function", "function": {"name": ..., ...}}.'
        )
    if params.get("return_full_text"):
        raise ModelError("bad_param", "return_full_text=true cannot be combined with tool_calls: leave it out.")


def tool_name(tool: Mapping[str, Json]) -> Json:
    """Return the name of a tool, as chat templates take it: a function, alone or with its type beside it."""
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None


def user_message(text: str) -> list[dict[str, Json]]:
    """Return the messages that ask a plain text."""
    return [{"role": "user", "content": text}]


def with_system_message(messages: Sequence[dict[str, Json]], system: str | None) -> list[dict[str, Json]]:
    """Return the messages after the job's system message, unless they begin with one of their own."""
    if system is None or messages[0]["role"] in _SYSTEM_ROLES:
        return list(messages)
    return [{"role": "system", "content": system}, *messages]
