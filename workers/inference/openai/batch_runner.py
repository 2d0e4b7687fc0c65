"""The runner of a job over requests: one model answers them, each by the task of its url."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from common.errors import ModelError, RecordError
from common.json_codec import to_json
from common.records import Failure, Json, Outcome
from workers.inference.core.runner import RunMonitor, Runner
from workers.inference.openai.completions import CompletionRequests
from workers.inference.openai.embeddings import EmbeddingRequests
from workers.inference.openai.request import OpenAIRequest, parse_request
from workers.inference.openai.request_runner import RequestRunner
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


class OpenAIBatchRunner(Runner):
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
        self._task = task
        self._find = find
        self._max_new_tokens = max_new_tokens

    def output_type(self, params: Mapping[str, Json]) -> pa.DataType | None:
        """Return the type of outputs with vectors; others are JSON text."""
        return _VECTORS if self._task == _EMBEDDING else None

    def run(self, inputs: Sequence[Json], params: Mapping[str, Json], monitor: RunMonitor) -> list[Outcome]:
        """Return one outcome for each request, in order."""
        self.inner.is_deterministic(params)  # an invalid parameter of the job fails the job
        requests, outcomes = parse_inputs(inputs, self._parse)
        tasks: dict[str, dict[int, OpenAIRequest]] = defaultdict(dict)
        for position, request in requests.items():
            tasks[request.task or self._task][position] = request
        # The job's own task first: loading another may evict its model.
        for task in sorted(tasks, key=lambda name: name != self._task):
            outcomes |= self._run_task(task, tasks[task], params, monitor)
        return [outcomes[position] for position in range(len(inputs))]

    def _parse(self, value: Json) -> OpenAIRequest:
        request = parse_request(value)
        if request.task and request.task not in _REQUESTS:
            raise RecordError("wrong_type", f"Not a valid request: {request.task!r:.100} is not a task of requests.")
        return request

    def _run_task(
        self, task: str, requests: Mapping[int, OpenAIRequest], params: Mapping[str, Json], monitor: RunMonitor
    ) -> dict[int, Outcome]:
        requests_of = _REQUESTS[task]
        if task == self._task:
            return requests_of(self.inner, task, self._max_new_tokens).run(requests, params, monitor)
        try:
            runner, own_params = self._find(task)
            found = requests_of(runner, task, self._max_new_tokens).run(requests, own_params, monitor)
        except ModelError as error:  # this model cannot do the task; the requests for others still run
            return dict.fromkeys(requests, Outcome(failure=Failure(error.code, error.message)))
        return {position: self._as_stored(outcome) for position, outcome in found.items()}

    def _as_stored(self, outcome: Outcome) -> Outcome:
        """Return the outcome of another task, its output of the type that those of the job's own have."""
        if outcome.failure is not None or self._task != _EMBEDDING:
            return outcome
        return Outcome({"other": to_json(outcome.output)})
