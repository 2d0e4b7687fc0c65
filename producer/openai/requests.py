"""One request of a batch file as the input of a record.

The input holds what the worker needs (`prompts`, `messages` or `texts`; `defaults`, `options`, `constraint`) and what
the response is made of (`url`, `model`, `n`, `encoding_format`).
"""

from collections.abc import Callable, Mapping

from common.errors import RecordError
from common.params import integer
from common.records import Json
from producer.openai.output_constraints import NAMES, constraint_of_request
from producer.openai.sampling_params import (
    COMPLETION_TOKENS,
    DEFAULTS,
    KNOWN,
    check_known,
    checked_param,
    options_of,
    set_answer_count,
)

#: What `url` may be, and the task that answers it.
URLS = {
    "/v1/embeddings": "embedding",
    "/v1/completions": "text-generation",
    "/v1/chat/completions": "text-generation",
}


_ENVELOPE = 'an object {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'


def check_envelope(line: Json) -> None:
    """Check a request except for its body's parameters.

    Raises:
        RecordError: `bad_request`.
    """
    if not isinstance(line, dict):
        raise RecordError("bad_request", f"expected {_ENVELOPE}")
    if not isinstance(line.get("custom_id"), str):
        raise RecordError("bad_request", "custom_id is missing, or not text")
    if missing := [name for name in ("method", "url", "body") if line.get(name) is None]:
        raise RecordError("bad_request", f"{' and '.join(missing)} missing; expected {_ENVELOPE}")
    if line.get("method") != "POST":
        raise RecordError("bad_request", f"method must be POST, found {line.get('method')!r}")
    if line.get("url") not in URLS:
        raise RecordError("bad_request", f"url must be one of {', '.join(URLS)}, found {line.get('url')!r}")
    body = line.get("body")
    if not isinstance(body, dict) or not isinstance(body.get("model"), str | None):
        raise RecordError("bad_request", "body must be an object, its model a text")


def build_input(url: str, body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the input of the record for a request.

    Raises:
        RecordError: `bad_request`, a parameter is unknown, unsupported or missing.
    """
    return {"url": url, "model": body.get("model"), **_READERS[url](body)}


def _embedding(body: Mapping[str, Json]) -> dict[str, Json]:
    check_known(body, frozenset({"model", "input", "dimensions", "encoding_format"}))
    options: dict[str, Json] = {}
    if body.get("dimensions") is not None:  # normalized again, as the API does
        options = {"truncate_dim": checked_param(body, "dimensions", integer(1)), "normalize": True}
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise RecordError("bad_request", f"encoding_format must be float or base64, found {form!r}")
    return {"texts": _texts(body, "input"), "options": options, "encoding_format": form}


def _completion(body: Mapping[str, Json]) -> dict[str, Json]:
    check_known(body, KNOWN | NAMES | {"model", "prompt", "echo"})
    if not isinstance(body.get("echo"), bool | None):
        raise RecordError("bad_request", "echo must be true or false")
    generation = _generation(body, {"max_new_tokens": COMPLETION_TOKENS})
    return {"prompts": _texts(body, "prompt"), "echo": bool(body.get("echo")), **generation}


def _chat(body: Mapping[str, Json]) -> dict[str, Json]:
    check_known(body, KNOWN | NAMES | {"model", "messages"})
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RecordError("bad_request", "messages must be a list of messages")
    # The API always begins a new message; the pipeline would continue an assistant's last one.
    return {"messages": [_message(m) for m in messages], **_generation(body, {"continue_final_message": False})}


_READERS: Mapping[str, Callable[[Mapping[str, Json]], dict[str, Json]]] = {
    "/v1/embeddings": _embedding,
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
}


def _generation(body: Mapping[str, Json], defaults: Mapping[str, Json]) -> dict[str, Json]:
    options = options_of(body)
    return {
        "n": set_answer_count(body, options),
        "defaults": {**DEFAULTS, **defaults},
        "options": options,
        **constraint_of_request(body),
    }


def _texts(body: Mapping[str, Json], name: str) -> list[str]:
    value = body.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RecordError("bad_request", f"{name} must be a text, or a list of texts (token ids are not supported)")
    return texts


_NOT_PASSED = ("tool_calls", "function_call", "audio")


def _message(message: Json) -> dict[str, Json]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RecordError("bad_request", 'a message must be an object {"role": ..., "content": ...}')
    unsupported = next((name for name in _NOT_PASSED if message.get(name)), None)
    if unsupported:
        raise RecordError("bad_request", f"{unsupported} in messages is not supported")
    role = {"developer": "system"}.get(message["role"], message["role"])
    # Other fields (`name`, `tool_call_id`, `reasoning_content`) are for the model's chat template.
    others = {name: value for name, value in message.items() if value is not None and name not in _NOT_PASSED}
    return {**others, "role": role, "content": _content(message.get("content"))}


def _content(content: Json) -> str:
    """Return the text of a message; parts are joined."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
        raise RecordError("bad_request", "the content of a message must be text, or parts of text")
    return "".join(part["text"] for part in parts)
