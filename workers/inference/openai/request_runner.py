"""Runs the requests of one task through its runner.

A request has options of its own and may hold several inputs. Requests with equal options run together, each input as a
record of its own; their results are then combined with what a response needs, such as token counts.
"""

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import ModelError
from common.records import Failure, Json, Outcome
from workers.inference.core.runner import RemappedMonitor, RunMonitor
from workers.inference.generation.limits import check_token_limit
from workers.inference.openai.request import OpenAIRequest
from workers.inference.text.tokenization import parse_inputs

#: Errors of the runner, which are about a whole job, that here concern single requests.
_REQUEST_ERRORS = ("bad_param", "too_many_tokens")


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

    def run(
        self, requests: Mapping[int, OpenAIRequest], params: Mapping[str, Json], monitor: RunMonitor
    ) -> dict[int, Outcome]:
        """Return one outcome for each request, by its position in the chunk.

        Args:
            requests: by position.
            params: of the job, for the runner.
            monitor: of the chunk.
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
        for text, group in groups.items():
            outcomes |= self._run_group(requests, group, dict(json.loads(text)), monitor)
        return outcomes

    def _run_group(
        self,
        requests: Mapping[int, OpenAIRequest],
        inputs: Mapping[int, Sequence[Json]],
        options: dict[str, Json],
        monitor: RunMonitor,
    ) -> dict[int, Outcome]:
        positions = [[position] for position, values in inputs.items() for _ in values]
        flat = [value for values in inputs.values() for value in values]
        try:
            check_token_limit(self._task, options, self._max_new_tokens)
            found = iter(self.inner.run(flat, options, RemappedMonitor(monitor, positions)))
        except ModelError as error:
            if error.code not in _REQUEST_ERRORS:
                raise
            return dict.fromkeys(inputs, Outcome(failure=Failure(error.code, error.message)))
        return {
            position: self._combine(requests[position], values, [next(found) for _ in values], options)
            for position, values in inputs.items()
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
