"""Batch files as records: which task and model they are for, and one record for each line."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from common.errors import RecordError, UsageError
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import find_sources, open_bytes
from common.inputs.text import json_records
from common.records import Failure, Json, Record
from common.tasks import ALIASES, TASKS, find_task
from producer.openai.requests import URLS, build_input, check_envelope


@dataclass(frozen=True, slots=True)
class BatchFile:
    """What all requests of a batch have in common."""

    url: str
    model: str | None  #: that of every request; None: whatever they say, the job has its own
    paths: tuple[str, ...]  #: of the files

    @property
    def task(self) -> str:
        """The task that answers them."""
        return URLS[self.url]


def find_batch(inputs: Sequence[str], task: str | None, model: str | None, max_bytes: int) -> BatchFile:
    """Return what the first request that can be read says; where the job names a model, that is for all of them.

    Raises:
        UsageError: there is none, or it is for another task than the job.
    """
    if "-" in inputs:
        raise UsageError("A batch file is looked at before it is read, which standard input cannot be. Name a file.")
    with closing(_lines(inputs, max_bytes)) as records:
        failure, first = None, None
        for record in records:
            if not record.failure:
                first = record.input
                break
            failure = failure or record.failure
    if first is None:
        raise UsageError(_no_request(inputs, failure))
    batch = BatchFile(first["url"], None if model else first["body"].get("model"), tuple(inputs))
    if task is not None and ALIASES.get(task, find_task(task).name) != batch.task:
        raise UsageError(f"--task {task}: the requests are for {batch.url}, which is {batch.task}. Leave --task out.")
    if model is None and batch.model is None:
        raise UsageError("The first request names no model; name one with --model.")
    return batch


def _no_request(inputs: Sequence[str], failure: Failure | None) -> str:
    message = f"{', '.join(inputs)}: no line is a request for one of {', '.join(URLS)}."
    return f"{message} The first one: {failure.message}." if failure else message


def read_batch(batch: BatchFile, max_bytes: int) -> Iterator[Record]:
    """Yield a record for each line; a request that is not of this batch, or cannot be followed, fails alone.

    Raises:
        UsageError: an input cannot be read.
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
    if url != batch.url:
        raise RecordError("bad_request", f"url is {url}; this batch is for {batch.url}, as its first request")
    if batch.model is not None and body.get("model") != batch.model:
        raise RecordError(
            "bad_request",
            f"model is {body.get('model')!r}; this batch is for {batch.model!r}, as its first request. "
            "--model runs all requests with one model, whatever they name.",
        )
    return build_input(url, body)


@dataclass(frozen=True, slots=True)
class _LineRecordBuilder(RecordBuilder):
    """Makes records of whole lines."""

    def record(self, number: int, line: int, value: Json) -> Record:
        """Return the record of a line: its id the request's, its input all of it."""
        try:
            check_envelope(value)
        except RecordError as error:
            return self.failed(number, Failure(error.code, f"{self.source.location(line)}: {error.message}"), value)
        return Record(value["custom_id"], value)


def _lines(inputs: Sequence[str], max_bytes: int) -> Generator[Record, None, None]:
    for source in find_sources(inputs, "jsonl"):
        builder = _LineRecordBuilder(
            source, TASKS["text-generation"], None, "custom_id", multiple_inputs=len(inputs) > 1
        )
        with open_bytes(source) as stream:
            yield from json_records(builder, stream, max_bytes)
