"""From the options of `submit` to a plan: everything checked that can be checked before any work."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from common.errors import UsageError
from common.inputs import check_inputs, read_records
from common.model_names import resolve_model
from common.settings import Settings, load_settings
from common.tasks import ALIASES, Task, find_task
from common.values import MAX_ERRORS, JobSpec, Json, Record, new_job_id
from producer.openai import BatchFile, check_batch_options, find_batch, read_batch
from producer.outputs import check_output

#: Characters of an idempotency key at most.
MAX_KEY = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """What `submit` is about to do."""

    settings: Settings
    spec: JobSpec
    task: Task
    inputs: tuple[str, ...]
    format: str | None
    column: str | None
    id_column: str | None
    chunk_records: int
    output: Path | None
    wait: bool
    idempotency_key: str | None = None
    batch: BatchFile | None = None  #: where the inputs are OpenAI's batch files

    def records(self) -> Iterator[Record]:
        """Return the records of the inputs, read while they are asked for."""
        if self.batch:
            return read_batch(self.inputs, self.batch, self.settings.max_record_bytes)
        return read_records(
            self.inputs,
            self.task,
            format=self.format,
            column=self.column,
            id_column=self.id_column,
            max_record_bytes=self.settings.max_record_bytes,
            shared=self.settings.shared,
        )

    def begun_records(self) -> Iterator[Record]:
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
    output: Path | None = None,
    wait: bool = False,
    name: str | None = None,
    priority: str = "normal",
    column: str | None = None,
    id_column: str | None = None,
    params: Mapping[str, Json] | None = None,
    labels: Mapping[str, str] | None = None,
    format_: str | None = None,
    device: str = "auto",
    chunk_size: int | None = None,
    max_errors: str | None = None,
    idempotency_key: str | None = None,
) -> Plan:
    """Return the plan for these options of `submit`.

    Raises:
        UsageError: something is wrong with them, or with an input or the output.
    """
    settings = load_settings()
    most = settings.max_record_bytes
    batch = find_batch(inputs, task, model, most) if format_ == "openai" else None
    task = batch.task if batch else _named(task)
    known = find_task(task)
    if batch:
        check_batch_options(column, id_column, output)
    else:
        check_inputs(inputs, known, format=format_, column=column, id_column=id_column, max_record_bytes=most)
    if output:
        check_output(output, known, inputs)
    resolved = resolve_model(model or (batch.model if batch else None))
    spec = JobSpec(
        id=new_job_id(),
        task=ALIASES.get(task, task),
        model=resolved or known.model,
        revision=revision or (known.revision if resolved is None else None),
        params=dict(params or {}),
        queue={"auto": "any"}.get(device, device),
        priority=priority,
        name=name,
        inputs=tuple(inputs),
        created_at=time.time(),
        labels=dict(labels or {}),
        max_errors=check_max_errors(max_errors),
        format="openai" if batch else None,
    )
    check_spec(spec)
    # With no queue configured, the worker lives only as long as this command does.
    waits = wait or output is not None or settings.embedded
    chunk_records = chunk_size or known.chunk_records
    return Plan(
        settings=settings,
        spec=spec,
        task=known,
        inputs=tuple(inputs),
        format=format_,
        column=column,
        id_column=id_column,
        chunk_records=chunk_records,
        output=output,
        wait=waits,
        idempotency_key=_check_key(idempotency_key),
        batch=batch,
    )


def _check_key(key: str | None) -> str | None:
    if key is not None and not (0 < len(key) <= MAX_KEY and key.strip()):
        raise UsageError(f"--idempotency-key: expected a text of 1 to {MAX_KEY} characters, found {key[:80]!r}.")
    return key


def _named(task: str | None) -> str:
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
    except ValueError as error:
        raise UsageError(f"The job cannot be submitted: {error}.") from error


def check_max_errors(text: str | None) -> str | None:
    """Return what `--max-errors` says.

    Raises:
        UsageError: it is neither a number nor per cent.
    """
    if text is not None and not MAX_ERRORS.match(text):
        raise UsageError(f"--max-errors {text!r}: expected a number of records, as 100, or a share of them, as 5%.")
    return text


def parse_params(params: Sequence[str]) -> dict[str, Json]:
    """Return the `-p` options: KEY=VALUE, the value as JSON where it is JSON, else as text.

    Raises:
        UsageError: one has no `=`, or no key.
    """
    parsed: dict[str, Json] = {}
    for param in params:
        key, equals, value = param.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"-p {param!r}: expected KEY=VALUE, as top_k=3.")
        parsed[key.strip()] = _parse_value(value)
    return parsed


def _parse_value(text: str) -> Json:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # json.loads also takes NaN and Infinity, which no option means.
    return text if isinstance(value, float) and not math.isfinite(value) else value
