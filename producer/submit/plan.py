"""Submit plan: options and inputs become a checked job, before any work is done."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from common.chat import TASK as CHAT_TASK
from common.chat import check_tool_calls, is_chat
from common.embedding_params import check_embedding_params
from common.errors import ModelError, StorageError, UsageError
from common.gpus import find_gpus
from common.inputs import Inputs, find_inputs
from common.inputs.record_builder import RecordBuilder
from common.inputs.sampling import SAMPLE_RECORDS, columns_of
from common.inputs.sources import ReadProgress
from common.jobs import MAX_ERRORS, JobSpec, new_job_id, truncate_names
from common.models.references import check_revision
from common.notifications import check_notify_url
from common.output_constraints import constraint_of
from common.own_columns import OUTPUT_COLUMN, Keep, parse_keep
from common.params import check_params, parse_params
from common.queue.heartbeats import Heartbeat
from common.records import Json, Record
from common.settings import Settings, absolute, load_settings
from common.storage.locations import MayOpen, any_location
from common.tasks import ALIASES, Task, declared_output, find_task
from common.template import Template
from producer.model_check import check_model, model_warning
from producer.openai import BatchFile, check_batch_options, check_batch_params, find_batch, read_batch
from producer.outputs.hub_target import HubOutput
from producer.outputs.targets import Target, check_target, parse_target, target_name, written_by_workers
from producer.submit.chunking import ChunkPlan, plan_chunks
from producer.submit.job_input import JobInput, find_job_input, names_job
from producer.submit.locations import check_locations
from producer.submit.options import SubmitOptions, job_names
from producer.submit.prompts import make_template, with_chat
from producer.submit.ranges_file import with_ranges
from producer.submit.schema_file import with_schema


def _check_generation(params: Mapping[str, Json]) -> None:
    is_chat(params)
    check_tool_calls(params)
    constraint_of(params)


#: Checks of parameters together, by task.
_CHECKS: Mapping[str, Callable[[Mapping[str, Json]], object]] = {
    "embedding": check_embedding_params,
    CHAT_TASK: _check_generation,
    "image-text-to-text": constraint_of,
    "any-to-any": constraint_of,
}

MAX_KEY_LENGTH = 256
MAX_CHUNK_SIZE = 100_000


@dataclass(frozen=True, slots=True)
class SubmitPlan:
    """What a submit is about to do."""

    settings: Settings
    spec: JobSpec
    task: Task
    inputs: Inputs | BatchFile | JobInput
    template: Template | None  #: makes the text of each record
    chunk_size: int | None  #: records of a chunk, if the user chose it
    output: Target | None
    wait: bool
    after: tuple[str, ...] = ()  #: names of the jobs that it waits for, as the user gave them
    idempotency_key: str | None = None
    progress: ReadProgress = field(default_factory=ReadProgress)  #: how much of the inputs was read
    warning: str | None = None  #: what the user should know beforehand
    may_open: MayOpen = any_location  #: which paths this process may open that records name

    def records(self) -> Iterator[Record]:
        """Return the records of the inputs, read one by one."""
        max_bytes = self.settings.max_record_bytes
        if isinstance(self.inputs, JobInput):
            return iter(())  # workers read them
        if isinstance(self.inputs, BatchFile):
            return islice(read_batch(self.inputs, max_bytes), self.spec.limit)
        records = self.inputs.records(
            max_bytes, shared=self.settings.shared, progress=self.progress, may_open=self.may_open
        )
        return islice(records, self.spec.limit)

    def peek(self) -> "tuple[SubmitPlan, Iterator[Record]]":
        """Return the records after reading some: what is wrong with standard input shows before any work.

        Returns:
            The plan, with the columns of an input that can be read only once, and the records.

        Raises:
            UsageError: The first input is empty, binary, or lacks a required or kept column.
        """
        records = self.records()
        if isinstance(self.inputs, JobInput):
            return self, records
        parts = self.inputs.parts if isinstance(self.inputs, Inputs) else ()
        once = [part for part in parts if isinstance(part, RecordBuilder)]
        once = [builder for builder in once if not builder.source.is_reopenable]
        if len(once) != 1 or self.spec.columns:
            return self, chain([next(records)], records)
        return self.with_columns_of(records, once[0], 1)

    def with_columns_of(
        self, records: Iterator[Record], builder: RecordBuilder, limit: int = SAMPLE_RECORDS
    ) -> "tuple[SubmitPlan, Iterator[Record]]":
        """Return the plan with the columns that the first records have, at most `limit` of them, and all records.

        Raises:
            UsageError: as for `columns_of`.
        """
        read: list[Record] = []

        def noted() -> Iterator[Record]:
            for record in records:
                read.append(record)
                yield record

        columns = columns_of(noted(), builder, limit)
        return replace(self, spec=replace(self.spec, columns=columns)), chain(read, records)

    def chunk_plan(self, workers: Sequence[Heartbeat] = ()) -> ChunkPlan:
        """Return how the records are cut into chunks, given the live workers of the queue."""
        return plan_chunks(self.chunk_size, self.task.chunk_records, workers)


def make_plan(
    inputs: Sequence[str],
    options: SubmitOptions,
    settings: Settings | None = None,
    may_open: MayOpen = any_location,
) -> SubmitPlan:
    """Return the plan of a submit.

    Args:
        inputs: Paths, URLs, Hub datasets, or `job:ID`; empty if the records are Python objects.
        options: What the user chose.
        settings: None: those of the environment.
        may_open: Which of the paths and URLs that they name this process may open.

    Raises:
        UsageError: An option, an input or the output is wrong.
    """
    settings = settings or load_settings()
    check_locations(inputs, options, may_open)
    keep = parse_keep(options.keep, options.output_column)
    task, template, found, columns = _find_inputs(inputs, options, settings, keep)
    is_batch = isinstance(found, BatchFile)
    target = parse_target(
        options.output, options.output_format, csv_safe=options.csv_safe, public=options.public, responses=is_batch
    )
    output = written_by_workers(target, settings)
    spec = _make_spec(task, options, settings, model=found.model if isinstance(found, BatchFile) else None)
    spec = replace(
        spec,
        after_any=options.after_any,
        inputs=truncate_names(inputs),
        format="openai" if is_batch else None,
        output=output,
        template=template.text if template else None,
        keep=() if is_batch else keep.names,
        columns=columns,
        id_column=options.id_column,
        output_column=keep.output,
    )
    keyed = options.idempotency_key is not None  # results that are there may be those of the key's own job
    if isinstance(target, HubOutput):
        from producer.hub.checks import check_hub_output

        check_hub_output(target, settings, begun=keyed)
    elif target is not None:
        check_target(target, declared_output(spec), inputs, begun=keyed and output is not None)
    check_spec(spec)
    if is_batch:
        check_batch_params(spec)
    _check_chunk_size(options.chunk_size)
    return SubmitPlan(
        settings=settings,
        spec=spec,
        task=task,
        inputs=found,
        template=template,
        chunk_size=options.chunk_size,
        output=target,
        wait=_should_wait(options.wait, target, spec, settings),
        after=job_names(options.after),
        idempotency_key=_check_key(options.idempotency_key),
        progress=ReadProgress() if is_batch or task.reads_files or options.limit else ReadProgress.of(inputs),
        warning=model_warning(spec.model, settings),
        may_open=may_open,
    )


def _find_inputs(
    inputs: Sequence[str], options: SubmitOptions, settings: Settings, keep: Keep
) -> tuple[Task, Template | None, Inputs | BatchFile | JobInput, dict[str, str]]:
    """Return the task, the template of its texts, the inputs, and the columns to keep.

    Requests of an OpenAI batch file name their task themselves.
    """
    max_bytes = settings.max_record_bytes
    if options.format == "openai" and not names_job(inputs):
        batch = find_batch(inputs, options.task, options.model, max_bytes)
        check_batch_options(
            {
                "--column": options.column is not None,
                "--id-column": options.id_column is not None,
                "--quoting": options.quoting is not None,
                "--template": options.template is not None,
                "--keep": options.keep != "all",
                "--output-column": options.output_column != OUTPUT_COLUMN,
            }
        )
        return find_task(batch.task), None, batch, {}
    if options.task is None:
        raise UsageError("Missing option '--task'; `producer tasks` lists what it can be.")
    task = find_task(options.task)
    template = make_template(options, task)
    if names_job(inputs):
        return task, template, find_job_input(inputs, options, task, template, keep), {}
    found = find_inputs(
        inputs,
        task,
        format=options.format,
        column=options.column,
        id_column=options.id_column,
        quoting=options.quoting,
        template=template,
        keep=keep,
    )
    return task, template, found, found.check(max_bytes)


def _make_spec(task: Task, options: SubmitOptions, settings: Settings, model: str | None) -> JobSpec:
    """Return the job of these options, without its inputs and output; `model` is used if the options name none."""
    name = options.task or task.name
    if options.model == "":
        raise UsageError("--model: the name is empty. Leave it out for the task's own.")
    resolved = check_model(options.model or model, settings)
    return JobSpec(
        id=new_job_id(),
        task=ALIASES.get(name, name),  # not the task's own name: translation_xx_to_yy holds the languages
        model=resolved or task.model,
        revision=check_revision(options.revision) or (task.revision if resolved is None else None),
        params=_check_task_params(task, options, resolved or task.model),
        limit=_check_limit(options.limit),
        queue=_queue_of(options.device, settings),
        priority=options.priority,
        name=options.name,
        created_at=time.time(),
        labels=dict(options.labels or {}),
        max_errors=_check_max_errors(options.max_errors),
        store=_check_store(absolute(options.store or settings.store_url), settings),
        notify=notify_url_of(options.notify, settings),
    )


def _should_wait(requested: bool | None, target: Target | None, spec: JobSpec, settings: Settings) -> bool:
    """Return whether the command waits; None: if it has results to write, or if its worker ends with it."""
    if requested is False and settings.embedded:
        raise UsageError(
            "--no-wait: no queue is configured, and the embedded worker may end with this command. Leave it out."
        )
    if requested is False and target is not None and spec.output is None:
        raise UsageError(
            f"--no-wait: {target_name(target)} is written by this command, at the end. Workers write directories that "
            "all of them reach: name one in HUGQUEUE_SHARED."
        )
    return requested if requested is not None else target is not None or settings.embedded


def _check_store(location: str, settings: Settings) -> str | None:
    """Return the store of a job after checking that files can be written there; None for Redis."""
    if not location:
        return None
    from common.payloads.job_payloads import check_location_allowed
    from common.storage.storage import open_storage

    try:
        check_location_allowed(location, lambda url: settings.embedded or settings.may_open(url))
        open_storage(location).check()
    except (ModelError, StorageError) as error:
        raise UsageError(f"--store: {error.message}") from error
    return location


def notify_url_of(requested: str | None, settings: Settings) -> str | None:
    """Return the URL to notify when the job has ended, None for none.

    Args:
        requested: What the user chose; empty for none, None for that of the settings.
        settings: Those of this process.

    Raises:
        UsageError: It is not a URL that can be notified.
    """
    if requested is None:
        return check_notify_url(settings.notify_url, "HUGQUEUE_NOTIFY_URL") if settings.notify_url else None
    return check_notify_url(requested, "--notify") if requested else None


def _queue_of(device: str, settings: Settings) -> str:
    queues = {"auto": "any", "cpu": "cpu", "gpu": "gpu"}
    if device not in queues:
        raise UsageError(f"--device: expected one of {', '.join(queues)}, found {device!r:.80}.")
    if settings.embedded and device != "auto":
        _check_own_device(device, settings)
    return queues[device]


def _check_own_device(device: str, settings: Settings) -> None:
    """Refuse a device that the embedded queue's worker does not use: the job would never run."""
    has_gpu = settings.device != "cpu" and bool(find_gpus())
    if device == "gpu" and not has_gpu:
        raise UsageError("--device gpu: no queue is configured, and this machine has no GPU that its worker may use.")
    if device == "cpu" and has_gpu:
        raise UsageError(
            "--device cpu: no queue is configured, and this machine's worker uses its GPU: set HUGQUEUE_DEVICE=cpu."
        )


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and not (isinstance(limit, int) and limit > 0):
        raise UsageError(f"--limit: expected a number of records above 0, found {limit!r:.80}.")
    return limit


def _with_dtype(params: Mapping[str, Json] | Sequence[str], dtype: str | None) -> Mapping[str, Json] | Sequence[str]:
    """Return the parameters with the dtype, which is a parameter of all tasks."""
    if dtype is None:
        return params
    if isinstance(params, Mapping):
        present = "dtype" in params
    else:
        present = any(param.partition("=")[0].strip() == "dtype" for param in params)
    if present:
        raise UsageError("--dtype and the parameter dtype: use only one.")
    return {**params, "dtype": dtype} if isinstance(params, Mapping) else (*params, f"dtype={dtype}")


def _check_chunk_size(size: int | None) -> None:
    if size is not None and not (isinstance(size, int) and 0 < size <= MAX_CHUNK_SIZE):
        raise UsageError(
            f"--chunk-size: expected a number of records from 1 to {MAX_CHUNK_SIZE:,}, found {size!r:.80}."
        )


def _check_key(key: str | None) -> str | None:
    if key is not None and not (0 < len(key) <= MAX_KEY_LENGTH and key.strip()):
        raise UsageError(f"--idempotency-key: expected a text of 1 to {MAX_KEY_LENGTH} characters, found {key[:80]!r}.")
    return key


def check_spec(spec: JobSpec) -> None:
    """Check that workers will accept the job: they check all data read from Redis.

    Raises:
        UsageError: A value has the wrong type.
    """
    try:
        JobSpec.decode(spec.encode())
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: a parameter that JSON cannot hold
        raise UsageError(f"The job cannot be submitted: {error}.") from error


def _check_max_errors(value: str | int | None) -> str | None:
    if value is not None and not MAX_ERRORS.match(str(value)):
        raise UsageError(f"--max-errors {value!r}: expected a number of records, such as 100, or a share, such as 5%.")
    return None if value is None else str(value)


def _check_task_params(task: Task, options: SubmitOptions, model: str | None) -> dict[str, Json]:
    """Return the parameters of a job, checked if its task declares them; if it is a plugin's, the worker checks them.

    Args:
        task: The task.
        options: Its parameters, as values by name, or as texts NAME=VALUE, parsed by the declared types.
        model: Of the job.

    Raises:
        UsageError: The task has no such parameter, does not take that value, or parameters conflict.
    """
    params = _with_dtype(options.params or (), options.dtype)
    try:
        values = dict(params) if isinstance(params, Mapping) else parse_params(params, task.params)
        values = with_chat(values, options, task, model)
        if task.name == "embedding":
            values = with_ranges(values)
        if "json_schema" in (task.params or {}):
            values = with_schema(values)
        if task.params is not None:
            values = check_params(task.name, task.params, values)
        if check := _CHECKS.get(task.name):
            check(values)
    except ModelError as error:
        raise UsageError(f"-p: {error.message}") from error
    return values
