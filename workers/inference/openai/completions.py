"""Completions and chats: choices, each with its text or calls of tools, and token counts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import RecordError
from common.json_codec import to_json
from common.output_constraints import ConstrainedInput
from common.records import Json
from workers.inference.openai.request import OpenAIRequest
from workers.inference.openai.request_runner import RequestRunner


class CompletionRequests(RequestRunner):
    """Answers completions and chats."""

    def inputs_of(self, request: OpenAIRequest) -> Sequence[Json]:
        """Return the prompts, or the one chat; with the request's own constraint, so that others share its batch."""
        inputs: Sequence[Json] = request.prompts if request.messages is None else [{"messages": request.messages}]
        if not inputs:
            raise RecordError("wrong_type", "The request has no text.")
        constraint = request.constraint
        return inputs if constraint is None else [ConstrainedInput(one, constraint) for one in inputs]

    def options_for(self, request: OpenAIRequest, options: dict[str, Json]) -> dict[str, Json]:
        """Return the options, asking for the answer alone and for token counts."""
        # A chat gives all of its messages, the last one as the model's response template reads it; the tasks with
        # files give the answer alone, and have no parameter for that.
        is_prompt = request.messages is None and self._task == "text-generation"
        return {**options, "usage": True, **({"return_full_text": False} if is_prompt else {})}

    def response(self, request: OpenAIRequest, inputs: Sequence[Json], outputs: Sequence[Json], options: Json) -> Json:
        """Return the choices of all prompts, one prompt after the other."""
        stops = options.get("stop_sequence", [])
        stops = [stops] if isinstance(stops, str) else stops
        choices: list[Json] = []
        completion_tokens = 0
        for prompt, found in zip(inputs, outputs, strict=True):
            # Without sampling all choices are equal, and one was generated.
            copies = found * request.n if len(found) == 1 else found
            text = prompt.input if isinstance(prompt, ConstrainedInput) else prompt
            before = text if request.echo else ""
            choices += [_choice(request, copy, before, stops) for copy in copies]
            completion_tokens += sum(copy["completion_tokens"] for copy in copies)
        prompt_tokens = sum(copies[0]["prompt_tokens"] for copies in outputs)
        return {"choices": choices, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}


def _choice(request: OpenAIRequest, copy: Mapping[str, Any], before: str, stops: Sequence[str]) -> dict[str, Json]:
    written, reasoning = _answer(copy)
    text = _before_stop(written, stops)
    choice: dict[str, Json] = {"text": before + text, "finish_reason": copy["finish_reason"]}
    calls = copy.get("tool_calls") or _required_calls(request, text, copy["finish_reason"])
    if calls:
        choice["tool_calls"] = calls
    if reasoning:
        choice["reasoning_content"] = reasoning
    if request.function is not None or request.calls:
        choice["text"] = "" if calls else choice["text"]
    if "logprobs" in copy:
        choice["logprobs"] = copy["logprobs"] if text == written else _tokens_of(copy["logprobs"], text)
    return choice


def _answer(copy: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return what a text says, and how the model came to it, where its form tells that apart."""
    found = copy["generated_text"]
    if isinstance(found, str):
        return found, copy.get("reasoning_content")
    message = found[-1]
    return message.get("content") or "", message.get("reasoning_content")


def _required_calls(request: OpenAIRequest, text: str, reason: str) -> list[dict[str, Json]]:
    """Return the calls that an answer had to make; none if it was cut off."""
    if reason != "stop":
        return []
    if request.function is not None:
        return [{"name": request.function, "arguments": text}]
    if not request.calls:
        return []
    return [{"name": call["name"], "arguments": to_json(call["parameters"])} for call in json.loads(text)]


def _before_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop sequence."""
    return text[: min((position for stop in stops if (position := text.find(stop)) >= 0), default=len(text))]


def _tokens_of(tokens: Sequence[Mapping[str, Json]], text: str) -> list[Json]:
    """Return the tokens that a text begins with; parts of characters count as nothing, so that none is missing."""
    kept: list[Json] = []
    length = 0
    for token in tokens:
        if length >= len(text):
            break
        kept.append(token)
        length += len(token["token"].replace("\ufffd", ""))
    return kept
