"""From the options of `submit` to a plan: everything checked that can be checked before any work."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from common.errors import ModelError, StorageError, UsageError
from common.gpus import find_gpus
from common.inputs import Inputs, find_inputs
from common.inputs.sources import ReadProgress
from common.inputs.splitting import split_source, splittable_builders, splittable_bytes
from common.jobs import MAX_ERRORS, JobSpec, new_job_id, truncate_names
from common.models.references import check_revision
from common.params import check_params, parse_params
from common.queue.heartbeats import Heartbeat
from common.records import Json, Record
from common.settings import Settings, absolute, load_settings
from common.tasks import ALIASES, Task, find_task
from producer.model_check import check_model, model_warning
from producer.openai import BatchFile, check_batch_options, find_batch, read_batch
from producer.outputs.targets import Target, check_target, parse_target, target_name, written_by_workers
from producer.submit.chunk_source import ChunkSource, RecordChunkSource, SplitChunkSource
from producer.submit.chunking import CHUNK_BYTES, ChunkPlan, plan_chunks

#: Characters of an idempotency key at most.
MAX_KEY = 256
#: Records of a chunk at most.
MAX_CHUNK = 100_000


@dataclass(frozen=True, slots=True)
class SubmitPlan:
    """What `submit` is about to do."""

    settings: Settings
    spec: JobSpec
    task: Task
    inputs: Inputs | BatchFile
    chunk_size: int | None  #: records of a chunk, if its user said so
    output: Target | None
    wait: bool
    idempotency_key: str | None = None
    progress: ReadProgress = field(default_factory=ReadProgress)  #: how much of the inputs was read
    warning: str | None = None  #: what its user is to be told beforehand

    def records(self) -> Iterator[Record]:
        """Return the records of the inputs, read while they are asked for."""
        return islice(self._all_records(), self.spec.limit)

    def _all_records(self) -> Iterator[Record]:
        most = self.settings.max_record_bytes
        if isinstance(self.inputs, BatchFile):
            return read_batch(self.inputs, most)
        return self.inputs.records(most, shared=self.settings.shared, progress=self.progress)

    def chunks(self, workers: Sequence[Heartbeat] = ()) -> ChunkPlan:
        """Return how the records are cut, for these live workers."""
        return plan_chunks(self.chunk_size, self.task.chunk_records, workers)

    def supply(self, records: Iterable[Record], workers: Sequence[Heartbeat]) -> ChunkSource:
        """Return what the chunks are made of: ranges of the inputs where workers read them in place, else the records.

        Args:
            records: those of the inputs.
            workers: the live ones that serve the job's queue.
        """
        makers = []
        if isinstance(self.inputs, Inputs) and self.spec.limit is None:
            makers = splittable_builders(self.inputs, self.settings.shared)
        if not makers:
            return RecordChunkSource(records, self.chunks(workers), self.progress)
        most, plan = self.settings.max_record_bytes, self.chunks()
        cuts = (cut for make in makers for cut in split_source(make, most, plan.sizes(), CHUNK_BYTES))
        return SplitChunkSource(cuts, sum(map(splittable_bytes, makers)))

    def peek_records(self) -> Iterator[Record]:
        """Return the records, the first of them read: what is wrong with standard input is known before any work.

        Raises:
            UsageError: the first input is empty, binary, or lacks a column that is needed.
        """
        records = self.records()
        return chain([next(records)], records)


def make_plan(  # noqa: PLR0913 - one argument for each option of the command
    inputs: Sequence[str],
    *,
    task: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    output: str | Path | None = None,
    output_format: str | None = None,
    csv_safe: bool = False,
    wait: bool | None = None,
    store: str | None = None,
    name: str | None = None,
    priority: str = "normal",
    column: str | None = None,
    id_column: str | None = None,
    params: Mapping[str, Json] | Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    format_: str | None = None,
    quoting: str | None = None,
    device: str = "auto",
    chunk_size: int | None = None,
    max_errors: str | None = None,
    dtype: str | None = None,
    limit: int | None = None,
    idempotency_key: str | None = None,
    settings: Settings | None = None,
) -> SubmitPlan:
    """Return the plan for these options of `submit`; `settings` are those of the environment unless they are given.

    Raises:
        UsageError: something is wrong with them, or with an input or the output.
    """
    settings = settings or load_settings()
    most = settings.max_record_bytes
    batch = find_batch(inputs, task, model, most) if format_ == "openai" else None
    task = batch.task if batch else _required_task(task)
    known = find_task(task)
    found: Inputs | BatchFile
    if batch:
        check_batch_options(column, id_column, quoting)
        found = batch
    else:
        found = find_inputs(inputs, known, format=format_, column=column, id_column=id_column, quoting=quoting)
        found.check(most)
    target = parse_target(output, output_format, csv_safe=csv_safe, responses=batch is not None)
    written = written_by_workers(target, settings)
    if target is not None:  # under a key, its parts may be those of the job that the key stands for
        check_target(target, known, inputs, begun=idempotency_key is not None and written is not None)
    if model == "":
        raise UsageError("--model: the name is empty. Leave it out for the task's own.")
    resolved = check_model(model or (batch.model if batch else None), settings)
    spec = JobSpec(
        id=new_job_id(),
        task=ALIASES.get(task, task),
        model=resolved or known.model,
        revision=check_revision(revision) or (known.revision if resolved is None else None),
        params=check_task_params(known, _with_dtype(params, dtype)),
        limit=_check_limit(limit),
        queue=_queue_of(device, settings),
        priority=priority,
        name=name,
        inputs=truncate_names(inputs),
        created_at=time.time(),
        labels=dict(labels or {}),
        max_errors=check_max_errors(max_errors),
        format="openai" if batch else None,
        store=_check_store(absolute(store or settings.store_url), settings),
        output=written,
    )
    check_spec(spec)
    _check_chunk_size(chunk_size)
    return SubmitPlan(
        settings=settings,
        spec=spec,
        task=known,
        inputs=found,
        chunk_size=chunk_size,
        output=target,
        wait=_should_wait(wait, target, spec, settings),
        idempotency_key=_check_key(idempotency_key),
        progress=ReadProgress() if batch or known.media or limit else ReadProgress.of(inputs),
        warning=model_warning(spec.model, settings),
    )


def _should_wait(requested: bool | None, target: Target | None, spec: JobSpec, settings: Settings) -> bool:
    """Return whether the command waits: as asked, else where it has to write, or its worker lives no longer than it."""
    if requested is False and settings.embedded:
        raise UsageError(
            "--no-wait: no queue is configured, and the embedded worker may end with this command. Leave it out."
        )
    if requested is False and target is not None and spec.output is None:
        raise UsageError(
            f"--no-wait: {target_name(target)} is written by this command, at the "
            "end. Workers write directories that all of them reach: name one under HUGQUEUE_SHARED."
        )
    return requested if requested is not None else target is not None or settings.embedded


def _check_store(address: str, settings: Settings) -> str | None:
    """Return the store of a job if files can be written there; None for Redis."""
    if not address:
        return None
    from common.payloads.job_payloads import check_location_allowed
    from common.storage.storage import open_storage

    try:
        check_location_allowed(address, lambda place: settings.embedded or settings.may_open(place))
        open_storage(address).check()
    except (ModelError, StorageError) as error:
        raise UsageError(f"--store: {error.message}") from error
    return address


def _queue_of(device: str, settings: Settings) -> str:
    queues = {"auto": "any", "cpu": "cpu", "gpu": "gpu"}
    if device not in queues:
        raise UsageError(f"--device: expected one of {', '.join(queues)}, found {device!r:.80}.")
    if settings.embedded and device != "auto":
        _check_own_device(device, settings)
    return queues[device]


def _check_own_device(device: str, settings: Settings) -> None:
    """Refuse a device that the embedded queue's worker does not use: the job would wait for ever."""
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
    """Return the parameters with the dtype among them: it is one that all tasks take."""
    if dtype is None:
        return params
    if isinstance(params, Mapping):
        present = "dtype" in params
    else:
        present = any(param.partition("=")[0].strip() == "dtype" for param in params)
    if present:
        raise UsageError("--dtype and the parameter dtype: give one of them.")
    return {**params, "dtype": dtype} if isinstance(params, Mapping) else (*params, f"dtype={dtype}")


def _check_chunk_size(size: int | None) -> None:
    if size is not None and not (isinstance(size, int) and 0 < size <= MAX_CHUNK):
        raise UsageError(f"--chunk-size: expected a number of records from 1 to {MAX_CHUNK:,}, found {size!r:.80}.")


def _check_key(key: str | None) -> str | None:
    if key is not None and not (0 < len(key) <= MAX_KEY and key.strip()):
        raise UsageError(f"--idempotency-key: expected a text of 1 to {MAX_KEY} characters, found {key[:80]!r}.")
    return key


def _required_task(task: str | None) -> str:
    if task is None:
        raise UsageError("Missing option '--task'; `producer tasks` lists what it can be.")
    return task


def check_spec(spec: JobSpec) -> None:
    """Check that workers will be able to read the job: they trust nothing that comes out of Redis.

    Raises:
        UsageError: an option holds what is no text.
    """
    try:
        JobSpec.decode(spec.encode())
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: a program's parameter that JSON has not
        raise UsageError(f"The job cannot be submitted: {error}.") from error


def check_max_errors(text: str | None) -> str | None:
    """Return what `--max-errors` says.

    Raises:
        UsageError: it is neither a number nor per cent.
    """
    if text is not None and not MAX_ERRORS.match(text):
        raise UsageError(f"--max-errors {text!r}: expected a number of records, as 100, or a share of them, as 5%.")
    return text


def check_task_params(task: Task, params: Mapping[str, Json] | Sequence[str]) -> dict[str, Json]:
    """Return the parameters of a job, checked as far as its task declares them.

    Args:
        task: declares them, unless its runner is another distribution's: then the worker checks them.
        params: values by name, or the texts of `-p NAME=VALUE`, which are read as the declared types say.

    Raises:
        UsageError: the task has no such parameter, or it does not take that value.
    """
    try:
        values = dict(params) if isinstance(params, Mapping) else parse_params(params, task.params)
        return values if task.params is None else check_params(task.name, task.params, values)
    except ModelError as error:
        raise UsageError(f"-p: {error.message}") from error
