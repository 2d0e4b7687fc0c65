"""One request of a batch file as the input of a record.

The input holds what the worker needs (`task`; `prompts`, `messages`, `texts`, `rankings` or `file`; `defaults`,
`options`, `constraint`, `function`, `calls`, `n`, `echo`) and what the response needs besides (`url`, `model`,
`encoding_format`, `one_call`, `response_format`, `top_n`).
"""

from collections.abc import Callable, Mapping

from common.params import integer
from common.records import Json
from producer.openai.errors import bad_request
from producer.openai.fields import check_known, checked_param, texts_of
from producer.openai.messages import has_images, read_messages
from producer.openai.output_constraints import CONSTRAINT_NAMES, constraint_of_request
from producer.openai.sampling_params import (
    COMPLETION_TOKENS,
    DEFAULTS,
    KNOWN,
    logprobs_of_chat,
    logprobs_of_completion,
    options_of,
    set_answer_count,
)
from producer.openai.scores import read_rerank, read_score
from producer.openai.tools import TOOL_NAMES, read_tools
from producer.openai.transcriptions import read_transcription

#: The task of chats with images; it answers chats without as well.
IMAGE_CHAT = "image-text-to-text"
_CHAT = "/v1/chat/completions"
#: What `url` may be, and the tasks that answer it: the usual one first.
URLS: Mapping[str, tuple[str, ...]] = {
    _CHAT: ("text-generation", IMAGE_CHAT),
    "/v1/completions": ("text-generation",),
    "/v1/embeddings": ("embedding",),
    "/v1/rerank": ("rerank",),
    "/v1/score": ("rerank",),
    "/v1/audio/transcriptions": ("automatic-speech-recognition",),
}
#: Other names that vLLM has for some of them.
_OTHER_URLS = {"/rerank": "/v1/rerank", "/v2/rerank": "/v1/rerank", "/score": "/v1/score"}

_GENERATION = KNOWN | CONSTRAINT_NAMES | {"model", "logprobs"}
_ENVELOPE = 'an object {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'


def read_envelope(line: Json) -> dict[str, Json]:
    """Return a request whose body's parameters are not checked yet, its `url` one of `URLS`.

    Raises:
        RecordError: `bad_request`.
    """
    if not isinstance(line, dict):
        raise bad_request(f"expected {_ENVELOPE}")
    if not isinstance(line.get("custom_id"), str):
        raise bad_request("custom_id is missing, or not text")
    if missing := [name for name in ("method", "url", "body") if line.get(name) is None]:
        raise bad_request(f"{' and '.join(missing)} missing; expected {_ENVELOPE}")
    if line["method"] != "POST":
        raise bad_request(f"method must be POST, found {line['method']!r:.100}")
    url, body = line["url"], line["body"]
    url = _OTHER_URLS.get(url, url) if isinstance(url, str) else None
    if url not in URLS:
        raise bad_request(f"url must be one of {', '.join(URLS)}, found {line['url']!r:.100}")
    if not isinstance(body, dict) or not isinstance(body.get("model"), str | None):
        raise bad_request("body must be an object, its model a text")
    return {**line, "url": url}


def task_of(url: str, body: Mapping[str, Json], job: str | None = None) -> str:
    """Return the task that answers a request.

    Args:
        url: of the request.
        body: of the request.
        job: the task of the job: if that can answer it, it does.
    """
    usual, *others = URLS[url]
    if job in others or (others and has_images(body.get("messages"))):
        return others[0]
    return usual


def build_input(url: str, body: Mapping[str, Json], job: str) -> dict[str, Json]:
    """Return the input of the record for a request in a job of that task.

    Raises:
        RecordError: `bad_request`, a parameter is unknown, unsupported or missing.
    """
    task = task_of(url, body, job)
    fields = _chat(body, task) if url == _CHAT else _READERS[url](body)
    return {"url": url, "task": task, "model": body.get("model"), **fields}


def _embedding(body: Mapping[str, Json]) -> dict[str, Json]:
    check_known(body, frozenset({"model", "input", "dimensions", "encoding_format"}))
    options: dict[str, Json] = {}
    if body.get("dimensions") is not None:  # normalized again, as the API does
        options = {"truncate_dim": checked_param(body, "dimensions", integer(1)), "normalize": True}
    form = body.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise bad_request(f"encoding_format must be float or base64, found {form!r}")
    return {"texts": texts_of(body, "input"), "options": options, "encoding_format": form}


def _completion(body: Mapping[str, Json]) -> dict[str, Json]:
    check_known(body, _GENERATION | {"prompt", "echo"})
    if not isinstance(body.get("echo"), bool | None):
        raise bad_request("echo must be true or false")
    options = options_of(body) | logprobs_of_completion(body)
    return {
        "prompts": texts_of(body, "prompt"),
        "echo": bool(body.get("echo")),
        **_generation(body, options, {"max_new_tokens": COMPLETION_TOKENS}),
        **constraint_of_request(body),
    }


def _chat(body: Mapping[str, Json], task: str) -> dict[str, Json]:
    check_known(body, _GENERATION | TOOL_NAMES | {"messages", "top_logprobs"})
    use = read_tools(body)
    if use.options and task == IMAGE_CHAT:
        raise bad_request("tools are not supported in chats of image-text-to-text")
    options = options_of(body) | logprobs_of_chat(body) | use.options
    return {
        "messages": read_messages(body, in_parts=task == IMAGE_CHAT),
        # The API always begins a new message; the pipeline would continue an assistant's last one.
        **_generation(body, options, {"continue_final_message": False}),
        **constraint_of_request(body, use.schema),
        **use.fields,
    }


def _generation(body: Mapping[str, Json], options: dict[str, Json], defaults: Mapping[str, Json]) -> dict[str, Json]:
    return {"n": set_answer_count(body, options), "defaults": {**DEFAULTS, **defaults}, "options": options}


#: The reader of each url, except of chats, whose form depends on their task.
_READERS: Mapping[str, Callable[[Mapping[str, Json]], dict[str, Json]]] = {
    "/v1/completions": _completion,
    "/v1/embeddings": _embedding,
    "/v1/rerank": read_rerank,
    "/v1/score": read_score,
    "/v1/audio/transcriptions": read_transcription,
}
