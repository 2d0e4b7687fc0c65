"""The bodies of responses, one form for each url, from what workers answered."""

import base64
import hashlib
import json
import math
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.jobs import JobSpec
from common.records import Json
from common.results import ResultRow


@dataclass(frozen=True, slots=True)
class _Answer:
    """A request with what a worker answered."""

    request: Mapping[str, Json]
    output: Mapping[str, Json]
    spec: JobSpec
    name: str  #: of the request, for ids

    @property
    def model(self) -> str:
        """The model as the request names it."""
        return self.request.get("model") or self.spec.model or ""

    @property
    def created(self) -> int:
        """When, in seconds since the epoch."""
        return int(self.spec.created_at)


def response_body(row: ResultRow, spec: JobSpec, name: str) -> Json:
    """Return the body of a response.

    Args:
        row: the request and what was answered; untrusted.
        spec: of the job.
        name: of the request, for ids.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, OverflowError: the output does not answer that request.
    """
    # Where vectors have columns of their own, what answers other requests is JSON text beside them.
    other = row.output.get("other")
    answer = _Answer(row.input, row.output if other is None else json.loads(other), spec, name)
    return _BODIES[answer.request["url"]](answer)


def _prompt_usage(answer: _Answer) -> dict[str, Json]:
    tokens = answer.output["prompt_tokens"]
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _embeddings(answer: _Answer) -> dict[str, Json]:
    form: Callable[[Json], Json] = _base64 if answer.request["encoding_format"] == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": form(vector)}
        for index, vector in enumerate(answer.output["embeddings"])
    ]
    return {"object": "list", "data": data, "model": answer.model, "usage": _prompt_usage(answer)}


def _base64(vector: list[float]) -> str:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _rerank(answer: _Answer) -> dict[str, Json]:
    [ranking] = answer.request["rankings"]
    scored = sorted(enumerate(answer.output["scores"]), key=lambda one: -one[1])
    results = [
        {"index": index, "document": {"text": ranking["documents"][index]}, "relevance_score": score}
        for index, score in scored[: answer.request["top_n"]]
    ]
    return {"id": f"rerank-{answer.name}", "model": answer.model, "usage": _prompt_usage(answer), "results": results}


def _score(answer: _Answer) -> dict[str, Json]:
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(answer.output["scores"])]
    head = {"id": f"score-{answer.name}", "object": "list", "created": answer.created, "model": answer.model}
    return {**head, "data": data, "usage": _prompt_usage(answer)}


def _transcription(answer: _Answer) -> Json:
    text = answer.output["text"]
    if answer.request["response_format"] == "text":
        return text
    return {"text": text, "usage": {"type": "duration", "seconds": math.ceil(answer.output["seconds"])}}


def _completion(answer: _Answer) -> dict[str, Json]:
    choices = [
        {
            "index": index,
            "text": choice["text"],
            "logprobs": _completion_logprobs(choice.get("logprobs")),
            "finish_reason": choice["finish_reason"],
        }
        for index, choice in enumerate(answer.output["choices"])
    ]
    return {"id": f"cmpl-{answer.name}", "object": "text_completion", **_written(answer, choices)}


def _completion_logprobs(tokens: Sequence[Json] | None) -> Json:
    if tokens is None:
        return None
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token["token"]))
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        # With the chosen one, as the API gives it: that may be one more than were asked for.
        "top_logprobs": [{one["token"]: one["logprob"] for one in (*token["top_logprobs"], token)} for token in tokens],
        "text_offset": offsets[:-1],
    }


def _chat(answer: _Answer) -> dict[str, Json]:
    choices = [_chat_choice(answer, index, choice) for index, choice in enumerate(answer.output["choices"])]
    return {"id": f"chatcmpl-{answer.name}", "object": "chat.completion", **_written(answer, choices)}


def _chat_choice(answer: _Answer, index: int, choice: Mapping[str, Json]) -> dict[str, Json]:
    calls = [
        {"id": _call_id(answer.name, index, number), "type": "function", "function": dict(call)}
        for number, call in enumerate(choice.get("tool_calls") or ())
    ]
    message: dict[str, Json] = {"role": "assistant", "content": choice["text"], "refusal": None}
    if calls:
        message |= {
            "content": choice["text"] or None,
            "tool_calls": calls[:1] if answer.request.get("one_call") else calls,
        }
    if "reasoning_content" in choice:
        message["reasoning_content"] = choice["reasoning_content"]
    tokens = choice.get("logprobs")
    return {
        "index": index,
        "message": message,
        "logprobs": None if tokens is None else {"content": list(map(_chat_token, tokens)), "refusal": None},
        "finish_reason": "tool_calls" if calls and choice["finish_reason"] == "stop" else choice["finish_reason"],
    }


def _call_id(name: str, choice: int, call: int) -> str:
    """Return the id of a call: the same every time, and of no other call."""
    return f"call_{hashlib.sha256(f'{name}:{choice}:{call}'.encode()).hexdigest()[:24]}"


def _chat_token(token: Mapping[str, Json]) -> dict[str, Json]:
    return {**_token(token), "top_logprobs": list(map(_token, token["top_logprobs"]))}


def _token(token: Mapping[str, Json]) -> dict[str, Json]:
    # The bytes of a part of a character are not known; the API allows null.
    text = token["token"]
    return {"token": text, "bytes": None if "\ufffd" in text else list(text.encode()), "logprob": token["logprob"]}


def _written(answer: _Answer, choices: list[dict[str, Json]]) -> dict[str, Json]:
    prompt_tokens, completion_tokens = answer.output["prompt_tokens"], answer.output["completion_tokens"]
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return {"created": answer.created, "model": answer.model, "choices": choices, "usage": usage}


_BODIES: Mapping[str, Callable[[_Answer], Json]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
    "/v1/rerank": _rerank,
    "/v1/score": _score,
    "/v1/audio/transcriptions": _transcription,
}
