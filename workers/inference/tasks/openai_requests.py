"""OpenAI batch requests: runs them through the runners for text generation and embedding.

A request has options of its own and may hold several texts. Requests with equal options run together, each text as an
input of its own; their results are then combined with the token counts that a response needs. The records have the
shape that `producer.openai` writes, but are untrusted.
"""

import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import msgspec
import pyarrow as pa

from common.errors import ModelError, RecordError
from common.jobs import JobSpec
from common.output_constraints import ConstrainedInput, Constraint
from common.records import Failure, Json, Outcome
from workers.inference.core.runner import RemappedMonitor, RunMonitor, Runner
from workers.inference.generation.limits import check_token_limit
from workers.inference.tasks.vector_runner import VectorRunner
from workers.inference.text.tokenization import parse_inputs

#: The API's limit on the choices of one request.
MAX_CHOICES = 128
#: Errors of the runner, which are about a whole job, that here concern single requests.
_REQUEST_ERRORS = ("bad_param", "too_many_tokens")


class OpenAIRequest(msgspec.Struct):
    """A request of a batch file, as `producer.openai` writes it."""

    options: dict[str, Json]  #: parameters of the runner
    defaults: dict[str, Json] = {}  #: the API's own, which parameters of the job override
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] = 1  #: choices for each prompt
    constraint: Constraint | None = None  #: what choices must be
    echo: bool = False  #: whether choices repeat the prompt
    messages: Any = None  #: the chat, checked by the runner
    prompts: list[str] = []
    texts: list[str] = []


def wrap_openai_runner(spec: JobSpec, runner: Runner, max_new_tokens: int) -> Runner:
    """Return a runner for requests in the job's format, based on `runner`.

    Raises:
        ModelError: `bad_param`, the task does not run requests.
    """
    if isinstance(runner, VectorRunner):
        return OpenAIEmbeddings(runner, spec.task, max_new_tokens)
    if spec.task == "text-generation":
        return OpenAICompletions(runner, spec.task, max_new_tokens)
    raise ModelError("bad_param", f"{spec.task} does not run requests of format {spec.format}.")


class OpenAIRunner(Runner):
    """Runs requests through another runner."""

    def __init__(self, inner: Runner, task: str, max_new_tokens: int) -> None:
        """Take the runner that computes, and the limit on generated tokens per text."""
        self.inner = inner
        self._task = task
        self._max_new_tokens = max_new_tokens

    @abstractmethod
    def inputs_of(self, request: OpenAIRequest) -> list[Json]:
        """Return the inner runner's inputs, one for each text."""

    @abstractmethod
    def response(self, request: OpenAIRequest, inputs: Sequence[Json], outputs: Sequence[Json], options: Json) -> Json:
        """Return the output for a request, from which the producer writes the response."""

    def options_for(self, options: dict[str, Json]) -> dict[str, Json]:
        """Return the inner runner's parameters for requests with these options."""
        return options

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return one outcome for each request, in order."""
        self.inner.is_deterministic(params)  # an invalid parameter of the job fails the job
        requests, outcomes = parse_inputs(inputs, self._parse)
        groups: dict[str, dict[int, OpenAIRequest]] = defaultdict(dict)
        for position, request in requests.items():
            options = {**request.defaults, **params, **request.options}
            groups[json.dumps(options, sort_keys=True)][position] = request
        for options_text, group in groups.items():
            outcomes |= self._run_group(group, json.loads(options_text), monitor)
        return [outcomes[position] for position in range(len(inputs))]

    def _parse(self, value: Json) -> OpenAIRequest:
        try:
            request = msgspec.convert(value, OpenAIRequest)
        except msgspec.ValidationError as error:
            raise RecordError("wrong_type", f"Not a valid request: {error}.") from error
        if not self.inputs_of(request):
            raise RecordError("wrong_type", "The request has no text.")
        return request

    def _run_group(
        self, group: Mapping[int, OpenAIRequest], options: dict[str, Json], monitor: RunMonitor
    ) -> dict[int, Outcome]:
        inputs = {position: self.inputs_of(request) for position, request in group.items()}
        positions = [[position] for position, texts in inputs.items() for _ in texts]
        flat = [text for texts in inputs.values() for text in texts]
        try:
            check_token_limit(self._task, options, self._max_new_tokens)
            found = iter(self.inner.run(flat, self.options_for(options), RemappedMonitor(monitor, positions)))
        except ModelError as error:
            if error.code not in _REQUEST_ERRORS:
                raise
            return dict.fromkeys(group, Outcome(failure=Failure(error.code, error.message)))
        return {
            position: self._combine(request, inputs[position], [next(found) for _ in inputs[position]], options)
            for position, request in group.items()
        }

    def _combine(self, request: OpenAIRequest, inputs: list[Json], found: Sequence[Outcome], options: Json) -> Outcome:
        failure = next((outcome.failure for outcome in found if outcome.failure), None)
        if not failure and any(outcome.truncated for outcome in found):
            message = "The text and the tokens to generate exceed the model's context length."
            failure = Failure("context_length_exceeded", message)
        if failure:
            return Outcome(failure=failure)
        return Outcome(self.response(request, inputs, [outcome.output for outcome in found], options))


class OpenAICompletions(OpenAIRunner):
    """Completions and chats: `choices` (text, finish reason), and token counts."""

    def inputs_of(self, request: OpenAIRequest) -> list[Json]:
        """Return the prompts, or the one chat; with the request's own constraint, so that others share its batch."""
        inputs: list[Json] = request.prompts if request.messages is None else [{"messages": request.messages}]
        constraint = request.constraint
        return inputs if constraint is None else [ConstrainedInput(one, constraint) for one in inputs]

    def options_for(self, options: dict[str, Json]) -> dict[str, Json]:
        """Return the options, asking for new text only and for token counts."""
        return {**options, "return_full_text": False, "usage": True}

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
            choices += [
                [before + _before_stop(copy["generated_text"], stops), copy["finish_reason"]] for copy in copies
            ]
            completion_tokens += sum(copy["completion_tokens"] for copy in copies)
        prompt_tokens = sum(copies[0]["prompt_tokens"] for copies in outputs)
        return {"choices": choices, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}


class OpenAIEmbeddings(OpenAIRunner):
    """Vectors for all texts of a request, and their number of tokens."""

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType:
        """Return vectors of any length, for requests may shorten them, and the count."""
        return pa.struct({"embeddings": pa.list_(pa.list_(pa.float32())), "prompt_tokens": pa.int64()})

    def inputs_of(self, request: OpenAIRequest) -> list[Json]:
        """Return the texts."""
        return request.texts

    def response(self, request: OpenAIRequest, inputs: Sequence[Json], outputs: Sequence[Json], options: Json) -> Json:
        """Return the vectors, and the number of tokens."""
        counts = cast("VectorRunner", self.inner).token_counts(inputs, options)
        return {"embeddings": list(outputs), "prompt_tokens": sum(counts)}


def _before_stop(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop sequence."""
    return text[: min((position for stop in stops if (position := text.find(stop)) >= 0), default=len(text))]
