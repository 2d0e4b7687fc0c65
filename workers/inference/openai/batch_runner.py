"""The runner of a job over requests: one model answers them, each by the task of its url."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from common.errors import ModelError, RecordError
from common.json_codec import to_json
from common.records import Failure, Json, Outcome
from workers.inference.core.runner import PreparingRunner, RunMonitor, Runner
from workers.inference.openai.completions import CompletionRequests
from workers.inference.openai.embeddings import EmbeddingRequests
from workers.inference.openai.request import OpenAIRequest, parse_request
from workers.inference.openai.request_runner import PreparedRequests, RequestRunner
from workers.inference.openai.scores import ScoreRequests
from workers.inference.openai.transcriptions import TranscriptionRequests
from workers.inference.text.tokenization import parse_inputs

#: What answers requests, by the task that they are for.
_REQUESTS: Mapping[str, type[RequestRunner]] = {
    "automatic-speech-recognition": TranscriptionRequests,
    "embedding": EmbeddingRequests,
    "image-text-to-text": CompletionRequests,
    "rerank": ScoreRequests,
    "text-generation": CompletionRequests,
}
_EMBEDDING = "embedding"
#: Vectors of any length, for requests may shorten them; and the JSON text of what answers requests for other tasks.
_VECTORS = pa.struct(
    {"embeddings": pa.list_(pa.list_(pa.float32())), "prompt_tokens": pa.int64(), "other": pa.string()}
)

#: Returns the runner of a task over the job's model, and the job's parameters for it.
FindRunner = Callable[[str], tuple[Runner, Mapping[str, Json]]]


@dataclass(frozen=True, slots=True)
class _PreparedChunk:
    """The requests of a chunk, those for the job's own task prepared."""

    size: int
    outcomes: dict[int, Outcome]  #: of what is no request
    own: PreparedRequests
    others: Mapping[str, Mapping[int, OpenAIRequest]]  #: by task


class OpenAIBatchRunner(PreparingRunner):
    """Runs requests through the runners of their tasks.

    Args:
        inner: the runner of the job's own task.
        task: its name.
        find: returns that of another task, which it may have to load.
        max_new_tokens: that may be generated for one input.
    """

    def __init__(self, inner: Runner, task: str, find: FindRunner, max_new_tokens: int) -> None:
        if task not in _REQUESTS:
            raise ModelError("bad_param", f"{task} does not run requests of a batch file.")
        self.inner = inner
        self._requests = _REQUESTS[task](inner, task, max_new_tokens)
        self._task = task
        self._find = find
        self._max_new_tokens = max_new_tokens

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType | None:
        """Return the type of outputs with vectors; others are JSON text."""
        return _VECTORS if self._task == _EMBEDDING else None

    def prepare(self, inputs: Sequence[Json], params: Mapping[str, Json]) -> _PreparedChunk:
        """Prepare the requests for the job's own task; the runner of another may have to be loaded first."""
        self.inner.is_deterministic(params)  # an invalid parameter of the job fails the job
        requests, outcomes = parse_inputs(inputs, self._parse)
        tasks: dict[str, dict[int, OpenAIRequest]] = defaultdict(dict)
        for position, request in requests.items():
            tasks[request.task or self._task][position] = request
        own = self._requests.prepare(tasks.pop(self._task, {}), params)
        return _PreparedChunk(len(inputs), outcomes, own, tasks)

    def run_prepared(self, prepared: _PreparedChunk, monitor: RunMonitor) -> list[Outcome]:
        """Return one outcome for each request, in order."""
        # The job's own task first: loading another may evict its model.
        outcomes = prepared.outcomes | self._requests.run_prepared(prepared.own, monitor)
        for task, requests in prepared.others.items():
            outcomes |= self._run_other(task, requests, monitor)
        return [outcomes[position] for position in range(prepared.size)]

    def _parse(self, value: Json) -> OpenAIRequest:
        request = parse_request(value)
        if request.task and request.task not in _REQUESTS:
            raise RecordError("wrong_type", f"Not a valid request: {request.task!r:.100} is not a task of requests.")
        return request

    def _run_other(self, task: str, requests: Mapping[int, OpenAIRequest], monitor: RunMonitor) -> dict[int, Outcome]:
        try:
            runner, params = self._find(task)
            answers = _REQUESTS[task](runner, task, self._max_new_tokens)
            found = answers.run_prepared(answers.prepare(requests, params), monitor)
        except ModelError as error:  # this model cannot do the task; the requests for others still run
            return dict.fromkeys(requests, Outcome(failure=Failure(error.code, error.message)))
        return {position: self._as_stored(outcome) for position, outcome in found.items()}

    def _as_stored(self, outcome: Outcome) -> Outcome:
        """Return the outcome of another task, its output of the type that those of the job's own have."""
        if outcome.failure is not None or self._task != _EMBEDDING:
            return outcome
        return Outcome({"other": to_json(outcome.output)})
