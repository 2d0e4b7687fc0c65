"""Requests of OpenAI's batch files over the runners of text-generation and embedding.

A request brings options of its own and may hold several texts: requests of equal options run together, each text as an
input of its own, and what comes back is put together again with the counts of tokens that a response needs.
Knows the shape of the records that `producer.openai` makes; records are untrusted all the same.
"""

import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa

from common.errors import ModelError, RecordError
from common.jobs import JobSpec
from common.records import Failure, Json, Outcome
from workers.inference.core.runner import RemappedMonitor, RunMonitor, Runner
from workers.inference.generation.limits import check_token_limit
from workers.inference.tasks.embedding import EmbeddingRunner
from workers.inference.text.tokenization import parse_inputs

Request = dict[str, Json]

#: Answers to one prompt, as the API bounds them.
MAX_CHOICES = 128
#: What a request may be refused for by the runner, which knows only jobs.
_REQUEST_ERRORS = ("bad_param", "too_many_tokens")


def wrap_openai_runner(spec: JobSpec, runner: Runner, max_new_tokens: int) -> Runner:
    """Return what answers requests of the job's format by `runner`.

    Raises:
        ModelError: `bad_param`, the task answers no requests.
    """
    if isinstance(runner, EmbeddingRunner):
        return OpenAIEmbeddings(runner, spec.task, max_new_tokens)
    if spec.task == "text-generation":
        return OpenAICompletions(runner, spec.task, max_new_tokens)
    raise ModelError("bad_param", f"{spec.task} answers no requests of format {spec.format}.")


class OpenAIRunner(Runner):
    """Answers requests by another runner."""

    def __init__(self, inner: Runner, task: str, max_new_tokens: int) -> None:
        """Take the runner that computes, and how many tokens may be generated for one text."""
        self.inner = inner
        self._task = task
        self._most = max_new_tokens

    @abstractmethod
    def inputs_of(self, request: Request) -> list[Json]:
        """Return the inner runner's inputs, one for each text.

        Raises:
            RecordError: `wrong_type`, there are none.
        """

    @abstractmethod
    def answer(self, request: Request, inputs: Sequence[Json], outputs: Sequence[Json], options: Request) -> Json:
        """Return what the response is made of."""

    def options_for(self, options: Request) -> Request:
        """Return the inner runner's parameters for requests with these options."""
        return options

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return one answer for each request, in order."""
        self.inner.is_deterministic(params)  # what is wrong with the job's own parameters fails the job
        requests, refused = parse_inputs(inputs, self._read)
        outcomes = dict(refused)
        groups: dict[str, list[int]] = defaultdict(list)
        for position, (request, _) in requests.items():
            options = {**request.get("defaults", {}), **params, **request["options"]}
            groups[json.dumps(options, sort_keys=True)].append(position)
        for options_text, positions in groups.items():
            group = {position: requests[position] for position in positions}
            outcomes |= self._run_group(group, json.loads(options_text), monitor)
        return [outcomes[position] for position in range(len(inputs))]

    def _read(self, value: Json) -> tuple[Request, list[Json]]:
        shapes = {"options": dict, "defaults": dict, "n": int, "echo": bool}
        if not isinstance(value, dict) or "options" not in value:
            raise RecordError("wrong_type", "Expected a request with its options.")
        for name, kind in shapes.items():
            if not isinstance(value.get(name, kind()), kind):
                raise RecordError("wrong_type", f"The request's {name} must be of type {kind.__name__}.")
        if value.get("n", 1) > MAX_CHOICES:
            raise RecordError("wrong_type", f"The request's n must be at most {MAX_CHOICES}.")
        return value, self.inputs_of(value)

    def _run_group(
        self, group: Mapping[int, tuple[Request, list[Json]]], options: Request, monitor: RunMonitor
    ) -> dict[int, Outcome]:
        places = [position for position, (_, parts) in group.items() for _ in parts]
        parts = [part for _, parts in group.values() for part in parts]
        try:
            check_token_limit(self._task, options, self._most)
            found = self.inner.run(parts, self.options_for(options), RemappedMonitor(monitor, [[at] for at in places]))
        except ModelError as error:
            if error.code not in _REQUEST_ERRORS:
                raise
            return dict.fromkeys(group, Outcome(failure=Failure(error.code, error.message)))
        ready = iter(found)
        return {
            position: self._outcome(request, inputs, [next(ready) for _ in inputs], options)
            for position, (request, inputs) in group.items()
        }

    def _outcome(self, request: Request, inputs: list[Json], found: Sequence[Outcome], options: Request) -> Outcome:
        failure = next((outcome.failure for outcome in found if outcome.failure), None)
        if failure:
            return Outcome(failure=failure)
        if any(outcome.truncated for outcome in found):
            return Outcome(
                failure=Failure(
                    "context_length_exceeded",
                    "The text is longer than the model takes together with the tokens that are asked for.",
                )
            )
        return Outcome(self.answer(request, inputs, [outcome.output for outcome in found], options))


class OpenAICompletions(OpenAIRunner):
    """Completions and chats: `choices` (text, finish reason), and counts of tokens."""

    def inputs_of(self, request: Request) -> list[Json]:
        """Return the prompts, or the one chat."""
        return [{"messages": request["messages"]}] if "messages" in request else _texts(request, "prompts")

    def options_for(self, options: Request) -> Request:
        """Return the options, with only new text asked for and with counts."""
        return {**options, "return_full_text": False, "usage": True}

    def answer(self, request: Request, inputs: Sequence[Json], outputs: Sequence[Json], options: Request) -> Json:
        """Return the choices of all prompts, one prompt after the other."""
        stops = options.get("stop_sequence", [])
        stops = [stops] if isinstance(stops, str) else stops
        choices: list[Json] = []
        written = 0
        for prompt, found in zip(inputs, outputs, strict=True):
            # Without sampling all answers are alike, and one was run.
            copies = found * request.get("n", 1) if len(found) == 1 else found
            before = prompt if request.get("echo") else ""
            choices += [
                [before + _before_stop(copy["generated_text"], stops), copy["finish_reason"]] for copy in copies
            ]
            written += sum(copy["completion_tokens"] for copy in copies)
        asked = sum(copies[0]["prompt_tokens"] for copies in outputs)
        return {"choices": choices, "prompt_tokens": asked, "completion_tokens": written}


class OpenAIEmbeddings(OpenAIRunner):
    """Vectors for all texts of a request, and how many tokens they are."""

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType:
        """Return vectors of any length, since requests may shorten them, and the count."""
        return pa.struct({"embeddings": pa.list_(pa.list_(pa.float32())), "prompt_tokens": pa.int64()})

    def inputs_of(self, request: Request) -> list[Json]:
        """Return the texts."""
        return _texts(request, "texts")

    def answer(self, request: Request, inputs: Sequence[Json], outputs: Sequence[Json], options: Request) -> Json:
        """Return the vectors, and the number of tokens."""
        counts = cast("EmbeddingRunner", self.inner).token_counts(inputs, options)
        return {"embeddings": list(outputs), "prompt_tokens": sum(counts)}


def _texts(request: Request, name: str) -> list[Json]:
    texts: Any = request.get(name)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RecordError("wrong_type", f"The request's {name} must be a list of texts.")
    return texts


def _before_stop(text: str, stops: Sequence[str]) -> str:
    """Return what stands before the first of the texts that end an answer."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
