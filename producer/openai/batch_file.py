"""OpenAI batch files as inputs: their task and model, and one record for each request."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from common.errors import RecordError, UsageError
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import find_sources, open_bytes
from common.inputs.text import json_records
from common.records import Failure, Json, Record
from common.tasks import ALIASES, TASKS, find_task
from producer.openai.errors import bad_request
from producer.openai.requests import URLS, build_input, read_envelope, task_of


@dataclass(frozen=True, slots=True)
class BatchFile:
    """What all requests of a batch have in common."""

    task: str  #: of the job: the one that answers the first request; others answer theirs besides
    model: str | None  #: that of every request; None: the job names its own
    paths: tuple[str, ...]  #: of the files


def find_batch(inputs: Sequence[str], task: str | None, model: str | None, max_bytes: int) -> BatchFile:
    """Return the batch of the first valid request; a model that the job names applies to all requests.

    Raises:
        UsageError: There is no valid request, or it is for another task than the job.
    """
    if "-" in inputs:
        raise UsageError("A batch file is read twice, so it cannot be standard input. Name a file.")
    first = _first_request(inputs, max_bytes)
    url, body = first["url"], first["body"]
    named = None if task is None else ALIASES.get(task, find_task(task).name)
    if named not in (None, *URLS[url]):
        answer = " or ".join(URLS[url])
        raise UsageError(f"--task {task}: the first request is for {url}, which is {answer}. Leave --task out.")
    batch = BatchFile(named or task_of(url, body), None if model else body.get("model"), tuple(inputs))
    if model is None and batch.model is None:
        raise UsageError("The first request names no model; name one with --model.")
    return batch


def _first_request(inputs: Sequence[str], max_bytes: int) -> dict[str, Json]:
    failure = None
    with closing(_lines(inputs, max_bytes)) as records:
        for record in records:
            if not record.failure:
                request: dict[str, Json] = record.input
                return request
            failure = failure or record.failure
    message = f"{', '.join(inputs)}: no line is a request for one of {', '.join(URLS)}."
    raise UsageError(f"{message} The first one: {failure.message}." if failure else message)


def read_batch(batch: BatchFile, max_bytes: int) -> Iterator[Record]:
    """Yield a record for each line; only the record fails if its request is not supported.

    Raises:
        UsageError: An input cannot be read.
    """
    for record in _lines(batch.paths, max_bytes):
        if record.failure:
            yield record
            continue
        try:
            yield replace(record, input=_input(record.input, batch))
        except RecordError as error:
            yield replace(record, failure=Failure(error.code, error.message))


def _input(line: dict[str, Json], batch: BatchFile) -> Json:
    url, body = line["url"], line["body"]
    if batch.model is not None and body.get("model") != batch.model:
        raise bad_request(
            f"model is {body.get('model')!r}; the first request of this batch is for {batch.model!r}. "
            "--model runs all requests with one model, whatever they name.",
        )
    return build_input(url, body, batch.task)


@dataclass(frozen=True, slots=True)
class _LineRecordBuilder(RecordBuilder):
    """Makes records of whole lines."""

    def record(self, number: int, line: int, value: Json) -> Record:
        """Return the record of a line: its id the request's, its input all of it."""
        try:
            request = read_envelope(value)
        except RecordError as error:
            return self.failed(number, Failure(error.code, f"{self.source.location(line)}: {error.message}"), value)
        return Record(request["custom_id"], request)


def _lines(inputs: Sequence[str], max_bytes: int) -> Generator[Record, None, None]:
    for source in find_sources(inputs, "jsonl"):
        builder = _LineRecordBuilder(
            source, TASKS["text-generation"], None, "custom_id", multiple_inputs=len(inputs) > 1
        )
        with open_bytes(source) as stream:
            yield from json_records(builder, stream, max_bytes)
