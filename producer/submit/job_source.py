"""The results of a job as chunks of another one: each refers to a chunk of the first, and workers read it there."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from itertools import count

import msgspec

from common.errors import ModelError, PayloadError, StorageError, UnknownJob, UsageError
from common.inputs.job_split import JobSplit, results_builder
from common.inputs.record_builder import RecordBuilder
from common.inputs.sources import ReadProgress
from common.jobs import Job, JobSpec, JobStatus
from common.output_types import TEXT as TEXT_SHAPE
from common.own_columns import ADDED, JSON, TEXT, Keep, arrow_column
from common.results import ResultLayout
from common.tasks import declared_output
from producer.queue_connection import QueueConnection
from producer.submit.chunk_source import ChunkContent, ChunkSource
from producer.submit.job_input import JobInput
from producer.submit.plan import SubmitPlan, check_spec


def open_job_input(connection: QueueConnection, plan: SubmitPlan, found: JobInput) -> tuple[SubmitPlan, ChunkSource]:
    """Return the plan with what is known of the results of its input, and its chunks.

    The job waits for the other one, whose results are kept until it has ended.

    Raises:
        UsageError: There is no such job, it has no results that can be records, or they lack a required or kept column.
        StoreUnavailable: Redis cannot be reached.
    """
    first = _find(connection, found.job)
    names = list(first.spec.columns)
    layout = ResultLayout.of(first.spec)
    output_as = _output_name(first.spec, {*names, *ADDED}, plan.spec.output_column)
    builder = results_builder(first.id, plan.task, found.column, found.id_column, found.template)
    added = ["id"] if layout.adds_id(names) else []
    builder = _with_column([*names, *added, layout.keep.output], layout.keep.output, builder)
    _check_is_text(first.spec, builder, layout.keep.output)
    keep = _renamed(found.keep, layout.keep.output, output_as)
    keep.check([*names, output_as], builder.source.label)
    columns = {**first.spec.columns, output_as: _output_column(first.spec)}
    spec = replace(
        plan.spec,
        inputs=(f"job:{first.id}",),
        after=(first.id,),
        columns={name: columns[name] for name in keep.chosen(columns)},
        keep=keep.names,
    )
    check_spec(spec)
    split = JobSplit(first.id, 0, output_as, None, builder.column, found.id_column)
    chunks = _chunks(first, split) if spec.limit is None else _limited(connection, first, split, spec.limit)
    return replace(plan, spec=spec), ChunkSource(chunks, ReadProgress())


def _find(connection: QueueConnection, name: str) -> Job:
    try:
        job = connection.load_job(connection.full_id(name))
    except UnknownJob as error:
        raise UsageError(f"job:{name}: {error}") from error
    label = f"job:{job.id}"
    if job.spec.training is not None:
        raise UsageError(f"{label} trained a model and has no records: use it with --model {label}.")
    if job.spec.format is not None:
        raise UsageError(f"{label}: its results are responses to a batch file, not records.")
    if job.status is JobStatus.SUBMITTING:
        raise UsageError(f"{label} is still being submitted; submit this one when it is {JobStatus.QUEUED}.")
    if not job.chunks:
        raise UsageError(f"{label} is {job.status} and has no records.")
    return job


def _output_name(first: JobSpec, taken: Collection[str], output: str) -> str:
    """Return the name of the first job's outputs among the columns: the task's, if both jobs would use one name."""
    if first.output_column != output:
        return first.output_column
    names = (first.task if number == 1 else f"{first.task}_{number}" for number in count(1))
    return next(name for name in names if name not in taken and name != output)


def _renamed(keep: Keep, output: str, output_as: str) -> Keep:
    if keep.names is None:
        return keep
    return replace(keep, names=tuple(output_as if name == output else name for name in keep.names))


def _with_column(names: list[str], output: str, builder: RecordBuilder) -> RecordBuilder:
    """Return the builder with the column of the input: as for a table, and preferably another one than the output."""
    usual = any(set(names).issuperset(fields) for fields in builder.task.fields)
    if not (builder.column or builder.template or usual):
        try:
            return builder.with_columns([name for name in names if name != output])
        except UsageError:
            pass  # its message would not name the output
    return builder.with_columns(names)


def _check_is_text(first: JobSpec, builder: RecordBuilder, output: str) -> None:
    form = declared_output(first)
    if builder.column == output and form is not None and form.shape != TEXT_SHAPE:
        raise UsageError(
            f"{builder.source.label}: its outputs are {form}, no texts. Name another column with --column, or make a "
            "text of several with --template."
        )


def _output_column(first: JobSpec) -> str:
    """Return the type of the column that the outputs become, as far as it is known before the first job has run."""
    form = declared_output(first)
    if form is None:
        return JSON
    return TEXT if form.shape == TEXT_SHAPE else arrow_column(form.arrow_type())


def _chunks(first: Job, split: JobSplit) -> Iterator[ChunkContent]:
    chunks, records = first.chunks or 0, first.records or 0
    for chunk in range(chunks):
        # Only the sum is known: that of one chunk is about its share.
        number = records * (chunk + 1) // chunks - records * chunk // chunks
        yield ChunkContent(msgspec.structs.replace(split, chunk=chunk), number, 0)


def _limited(connection: QueueConnection, first: Job, split: JobSplit, limit: int) -> Iterator[ChunkContent]:
    if limit >= (first.records or 0):
        yield from _chunks(first, split)
        return
    payloads = connection.store.payloads(first.spec)
    for chunk in range(first.chunks or 0):
        try:
            number = connection.retry_while_unavailable(partial(payloads.count_records, chunk))
        except (PayloadError, ModelError, StorageError) as error:
            raise UsageError(f"--limit: the records of job {first.id} cannot be counted here: {error}") from error
        taken = min(number, limit)
        part = msgspec.structs.replace(split, chunk=chunk, records=taken if taken < number else None)
        yield ChunkContent(part, taken, 0)
        limit -= taken
        if not limit:
            return
