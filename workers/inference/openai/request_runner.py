"""Runs the requests of one task through its runner.

A request has options of its own and may hold several inputs. Requests with equal options run together, each input as a
record of its own; their results are then combined with what a response needs, such as token counts.
"""

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import ModelError
from common.records import Failure, Json, Outcome
from workers.inference.core.runner import PreparingRunner, RemappedMonitor, RunMonitor
from workers.inference.generation.limits import check_token_limit
from workers.inference.openai.request import OpenAIRequest
from workers.inference.text.tokenization import parse_inputs

#: Errors of the runner, which are about a whole job, that here concern single requests.
_REQUEST_ERRORS = ("bad_param", "too_many_tokens")


@dataclass(frozen=True, slots=True)
class _Group:
    """Requests with equal options, which run together."""

    inputs: Mapping[int, Sequence[Json]]  #: by the position of their request in the chunk
    options: dict[str, Json]
    prepared: Any = None  #: what `PreparingRunner.prepare` returned for them


@dataclass(frozen=True, slots=True)
class PreparedRequests:
    """Requests that are ready to run. They hold no model."""

    requests: Mapping[int, OpenAIRequest]  #: by position in the chunk
    outcomes: dict[int, Outcome]  #: of those that cannot run
    groups: list[_Group] = field(default_factory=list)


class RequestRunner(ABC):
    """Answers requests by the runner of their task.

    Args:
        inner: the runner.
        task: its name.
        max_new_tokens: that may be generated for one input.
    """

    def __init__(self, inner: Any, task: str, max_new_tokens: int) -> None:
        self.inner = inner
        self._task = task
        self._max_new_tokens = max_new_tokens

    @abstractmethod
    def inputs_of(self, request: OpenAIRequest) -> Sequence[Json]:
        """Return the runner's inputs, in order.

        Raises:
            RecordError: the request holds none, or none that can run.
        """

    @abstractmethod
    def response(self, request: OpenAIRequest, inputs: Sequence[Json], outputs: Sequence[Json], options: Json) -> Json:
        """Return the output for a request, from which the producer writes the response."""

    def options_for(self, request: OpenAIRequest, options: dict[str, Json]) -> dict[str, Json]:
        """Return the runner's parameters for a request with these options."""
        return options

    def prepare(self, requests: Mapping[int, OpenAIRequest], params: Mapping[str, Json]) -> PreparedRequests:
        """Return requests with their inputs, prepared as far as the runner can; any thread may call this.

        Args:
            requests: by position in the chunk.
            params: of the job, for the runner.
        """
        positions = list(requests)
        found, refused = parse_inputs(positions, lambda position: self.inputs_of(requests[position]))
        outcomes = {positions[number]: outcome for number, outcome in refused.items()}
        groups: dict[str, dict[int, Sequence[Json]]] = defaultdict(dict)
        for number, inputs in found.items():
            request = requests[positions[number]]
            options = self.options_for(request, {**request.defaults, **params, **request.options})
            # Sorted by name only: within an option, such as tools, the model may see the order.
            groups[json.dumps(sorted(options.items()))][positions[number]] = inputs
        prepared = PreparedRequests(requests, outcomes)
        for text, group in groups.items():  # an engine then has all of them at once, whatever their options
            options = dict(json.loads(text))
            try:
                prepared.groups.append(self._prepare_group(group, options))
            except ModelError as error:
                outcomes |= _failed(group, error)
        return prepared

    def run_prepared(self, prepared: PreparedRequests, monitor: RunMonitor) -> dict[int, Outcome]:
        """Return one outcome for each request, by its position in the chunk."""
        outcomes = dict(prepared.outcomes)
        for group in prepared.groups:
            outcomes |= self._run_group(prepared.requests, group, monitor)
        return outcomes

    def _prepare_group(self, inputs: Mapping[int, Sequence[Json]], options: dict[str, Json]) -> _Group:
        check_token_limit(self._task, options, self._max_new_tokens)
        if not isinstance(self.inner, PreparingRunner):
            return _Group(inputs, options)
        return _Group(inputs, options, self.inner.prepare(_flat(inputs), options))

    def _run_group(
        self, requests: Mapping[int, OpenAIRequest], group: _Group, monitor: RunMonitor
    ) -> dict[int, Outcome]:
        positions = [[position] for position, values in group.inputs.items() for _ in values]
        own = RemappedMonitor(monitor, positions)
        try:
            if isinstance(self.inner, PreparingRunner):
                found = iter(self.inner.run_prepared(group.prepared, own))
            else:
                found = iter(self.inner.run(_flat(group.inputs), group.options, own))
        except ModelError as error:
            return _failed(group.inputs, error)
        return {
            position: self._combine(requests[position], values, [next(found) for _ in values], group.options)
            for position, values in group.inputs.items()
        }

    def _combine(
        self, request: OpenAIRequest, inputs: Sequence[Json], found: Sequence[Outcome], options: Json
    ) -> Outcome:
        failure = next((outcome.failure for outcome in found if outcome.failure), None)
        if not failure and any(outcome.truncated for outcome in found):
            message = "The text, with the tokens to generate, exceeds the model's context length."
            failure = Failure("context_length_exceeded", message)
        if failure:
            return Outcome(failure=failure)
        return Outcome(self.response(request, inputs, [outcome.output for outcome in found], options))


def _flat(inputs: Mapping[int, Sequence[Json]]) -> list[Json]:
    return [value for values in inputs.values() for value in values]


def _failed(positions: Iterable[int], error: ModelError) -> dict[int, Outcome]:
    """Return the outcomes of requests for what would fail a job.

    Raises:
        ModelError: it is not about these requests alone.
    """
    if error.code not in _REQUEST_ERRORS:
        raise error
    return dict.fromkeys(positions, Outcome(failure=Failure(error.code, error.message)))
