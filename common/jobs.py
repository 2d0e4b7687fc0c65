"""Jobs: what was submitted (`JobSpec`) and how far it is (`Job`).

Data read from Redis is untrusted: `JobSpec.decode` and `decode_job` check every field and raise `ValueError`.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from common.display_text import one_line
from common.notifications import Notification, NotificationState, mask_notify_url
from common.own_columns import OUTPUT_COLUMN, TYPE_PATTERN
from common.records import Counts, Failure, Json
from common.template import Template
from common.validation import checked, one_line_of, one_of, pattern
from common.vector_ranges import NotedRanges, Ranges, ranges_of_params

JOB_ID = re.compile(r"^[0-9a-f]{12}\Z")
#: How many failed records end a job early: a number, or per cent of its records.
MAX_ERRORS = re.compile(r"^(\d{1,12}|\d{1,2}(\.\d+)?%)\Z")
#: The header `traceparent` of W3C Trace Context: version, trace, span, flags.
TRACEPARENT = re.compile(r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
#: What a model may compute in; `auto` leaves it to the device.
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8", "float8")
#: What generates text where it can, in the place of transformers; `auto` is vLLM on a GPU, if it is installed.
TRANSFORMERS, VLLM, AUTO_ENGINE = ENGINES = ("transformers", "vllm", "auto")
QUEUES = ("any", "cpu", "gpu", "train")
#: The queue of fine-tune jobs.
TRAIN = "train"
#: Priority names and what Celery's Redis transport makes of them: 0 is the highest there.
PRIORITIES = {"high": 0, "normal": 3, "low": 6}

#: Jobs that one job may wait for.
MAX_AFTER = 100
#: Characters of the names of inputs that a job keeps.
MAX_INPUT_NAMES = 2000
#: Upper bound of a job's times, in seconds since the epoch (the year 5138): datetime goes to 9999.
MAX_TIMESTAMP = 1e11

_Id = Annotated[str, pattern(JOB_ID.pattern, "twelve hexadecimal digits")]
_Name = Annotated[str, one_line_of(256)]
_Path = Annotated[str, one_line_of(4096)]
_Column = Annotated[str, Meta(max_length=8192)]
_ColumnType = Annotated[str, pattern(TYPE_PATTERN, "the type of a column")]
_Time = Annotated[float, Meta(ge=0, lt=MAX_TIMESTAMP)]
LabelKey = Annotated[str, pattern(r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}\Z", "up to 63 letters, digits and _ . / -")]
LabelValue = Annotated[str, one_line_of(256)]


class JobStatus(StrEnum):
    """The state of a job."""

    SUBMITTING = "submitting"  # its producer is still writing chunks
    BLOCKED = "blocked"  # accepted, waits for other jobs
    QUEUED = "queued"  # accepted, no chunk leased yet
    RUNNING = "running"  # at least one chunk was leased
    COMPLETED = "completed"  # every record has an outcome (which may be a failure)
    FAILED = "failed"  # ended early, for the reason in its `failure`
    CANCELLING = "cancelling"  # the user asked to stop; chunks in progress are being dropped
    CANCELLED = "cancelled"  # stopped; what was done is kept

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to the job, unless it is retried."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class Output:
    """Where workers write the outcomes of a job, one part for each chunk."""

    location: _Path  #: an absolute path, or a URL
    format: Annotated[str, one_of("parquet", "jsonl")]


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What was submitted; it never changes."""

    id: _Id
    task: _Name
    model: _Path | None = None  #: Hub id, path, or `job:ID`; None for a runner that needs none
    revision: _Name | None = None
    params: Mapping[str, Json] = field(default_factory=dict)  #: runner options, such as `top_k`
    queue: Annotated[str, one_of(*QUEUES)] = "any"
    priority: Annotated[str, one_of(*PRIORITIES)] = "normal"
    name: _Name | None = None  #: the user's own word for it
    #: Where the records came from, for people (`truncate_names`).
    inputs: tuple[Annotated[str, Meta(max_length=8192)], ...] = ()
    created_at: _Time = 0.0  #: seconds since the epoch
    #: With more failed records the job ends early: `10`, or `5%` of all.
    max_errors: Annotated[str, pattern(MAX_ERRORS.pattern, "a number of records, or a share such as 5%")] | None = None
    store: _Path | None = None  #: where its payloads are kept, if not in Redis
    output: Output | None = None  #: where workers write its outcomes, if they do
    training: Mapping[str, Json] | None = None  #: of a fine-tune job: its options (`common.training.options`)
    #: The user's own words to find it by.
    labels: Annotated[Mapping[LabelKey, LabelValue], Meta(max_length=64)] = field(default_factory=dict)
    limit: int | None = None  #: the largest number of records to read from its inputs
    #: Which of their own columns the records' results repeat; None: all.
    keep: tuple[_Column, ...] | None = ()
    #: Those columns and their types, as far as known.
    columns: Mapping[_Column, _ColumnType] = field(default_factory=dict)
    id_column: _Column | None = None  #: the column of the ids, if the user named one
    output_column: _Column = OUTPUT_COLUMN
    #: `openai`: the records are requests of a batch file, and the results are its responses.
    format: Annotated[str, one_of("openai")] | None = None
    #: The span in which it was submitted (`common.tracing`), by the W3C's recommendation Trace Context.
    traceparent: Annotated[str, pattern(TRACEPARENT.pattern, "a version 00 of traceparent")] | None = None
    template: str | None = None  #: makes the records' texts (`common.template`); of inputs read in place, on workers
    notify: _Path | None = None  #: the URL that workers notify when it has ended; it may hold a token
    #: Jobs that it waits for: it runs once all of them are completed, and is cancelled when one fails.
    after: Annotated[tuple[_Id, ...], Meta(max_length=MAX_AFTER)] = ()
    after_any: bool = False  #: it runs once they have ended, in any case

    @property
    def kind(self) -> str:
        """What is done with the records: `inference`, or `finetune`."""
        return "inference" if self.training is None else "finetune"

    @property
    def title(self) -> str:
        """The job in a few words, for Flower and logs: no secrets, no payload."""
        name = f" {self.name!r}" if self.name else ""
        return f"job {self.id}{name} · {short_model(self.model) or 'no model'}"

    @property
    def ranges(self) -> Ranges | None:
        """The ranges of its vectors, if they are among its parameters."""
        return ranges_of_params(self.params)

    @property
    def shown_params(self) -> dict[str, Json]:
        """Its parameters for people: of ranges, only where they come from."""
        return {**self.params, "ranges": self.ranges.source} if self.ranges else dict(self.params)

    def max_failed(self, records: int) -> int | None:
        """Return how many of `records` records may fail before the job ends early; None: all of them."""
        if self.max_errors is None:
            return None
        share, percent, _ = self.max_errors.partition("%")
        return int(records * float(share) / 100) if percent else int(share)

    def encode(self) -> str:
        """Return the JSON text that `decode` takes, in ASCII: a file's name may have no UTF-8 form."""
        fields = {name: getattr(self, name) for name in self.__slots__}  # `asdict` copies all of them, deeply
        return json.dumps(fields | {"output": asdict(self.output) if self.output else None})

    @classmethod
    def decode(cls, text: str | bytes) -> "JobSpec":
        """Return the job of that JSON text.

        Raises:
            ValueError: the text is not JSON, or a field is missing or of the wrong type.
        """
        try:
            spec: JobSpec = _SPEC_DECODER.decode(text)
        except (msgspec.MsgspecError, UnicodeError):  # a message, or a file's name with lone surrogates
            spec = checked(json.loads(text), cls, "a job")
        if (spec.training is not None) != (spec.queue == TRAIN):
            raise ValueError(f"the queue {TRAIN!r} serves fine-tune jobs and no others; found {spec.queue!r}")
        if spec.template is not None:
            _check_template(spec.template)
        return spec


_SPEC_DECODER = msgspec.json.Decoder(JobSpec)


@dataclass(frozen=True, slots=True)
class Job:
    """The state of one job at one moment. Times are seconds since the epoch, by Redis's clock."""

    spec: JobSpec
    status: JobStatus
    chunks: int | None = None  #: None until the job was accepted
    records: int | None = None
    round: int = 0  #: raised by each retry
    counts: Counts = field(default_factory=Counts)
    accepted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    failure: Failure | None = None  #: why the job failed, or was cancelled if its user did not do that
    stage: str = ""  #: what a worker does before records can run, such as loading a model
    run_info: Mapping[str, Json] = field(default_factory=dict)  #: what ran: device, dtype, versions, model commit
    progress: Mapping[str, Json] = field(default_factory=dict)  #: of a fine-tune job: step, loss, metrics, notes
    producer_seen: float = 0.0  #: while it is being submitted: when its producer was last seen
    noted_ranges: NotedRanges | None = None  #: of its first vectors, if they are needed and not among its parameters
    unblocked: bool = False  #: predecessors no longer cancel it: it was ready to run once
    notification: Notification | None = None  #: of its latest end, if it has ended and names a URL

    @property
    def ranges(self) -> Ranges | None:
        """The ranges that its vectors were quantized with; None if they have none, or none yet."""
        return self.noted_ranges.ranges if self.noted_ranges else self.spec.ranges

    @property
    def id(self) -> str:
        """The job's id."""
        return self.spec.id

    def as_dict(self) -> dict[str, Json]:
        """Return what `--json` shows."""
        spec = self.spec
        return {
            "id": spec.id,
            "kind": spec.kind,
            "name": spec.name,
            "labels": dict(spec.labels),
            "task": spec.task,
            "model": spec.model,
            "revision": spec.revision,
            "params": spec.shown_params,
            "template": spec.template,
            "training": dict(spec.training) if spec.training is not None else None,
            "queue": spec.queue,
            "priority": spec.priority,
            "inputs": list(spec.inputs),
            "limit": spec.limit,
            "keep": None if spec.keep is None else list(spec.keep),
            "after": list(spec.after),
            "after_any": spec.after_any,
            "status": str(self.status),
            "stage": self.stage or None,
            "counts": {
                "records": self.records,
                "done": self.counts.done,
                "succeeded": self.counts.succeeded,
                "failed": self.counts.failed,
                "truncated": self.counts.truncated,
            },
            "chunks": self.chunks,
            "round": self.round,
            "created_at": iso_time(spec.created_at),
            "started_at": iso_time(self.started_at),
            "finished_at": iso_time(self.finished_at),
            "error": self.failure.as_dict() if self.failure else None,
            "ran_on": dict(self.run_info) or None,
            "ranges": self.ranges.as_dict() if self.ranges else None,
            "progress": dict(self.progress) or None,
            "notify": self._notify_as_dict(),
        }

    def _notify_as_dict(self) -> dict[str, Json] | None:
        if self.spec.notify is None:
            return None
        known = self.notification
        return {
            "url": mask_notify_url(self.spec.notify),
            "state": str(known.state) if known else None,
            "attempts": known.attempts if known else 0,
            "last_attempt_at": iso_time(known.last_attempt_at) if known else None,
            "next_attempt_at": iso_time(known.next_attempt_at) if known else None,
            "error": (known.error or None) if known else None,
        }


class _JobHash(msgspec.Struct, frozen=True):
    """The fields of a job's hash in Redis; all of them are texts there."""

    spec: str
    status: JobStatus
    round: int
    ttl_ms: int
    chunks: int | None = None
    records: int | None = None
    succeeded: int = 0
    failed: int = 0
    truncated: int = 0
    accepted_at: _Time | None = None
    started_at: _Time | None = None
    finished_at: _Time | None = None
    producer_seen: _Time = 0.0
    failure_code: str = ""
    failure_message: str = ""
    stage: str = ""
    run_info: str = "{}"
    progress: str = "{}"
    ranges_id: str = ""
    ranges: str = ""
    unblocked: bool = False
    notify_state: NotificationState | None = None
    notify_attempts: int = 0
    notify_last_at: _Time | None = None
    notify_next_at: _Time | None = None
    notify_error: str = ""


def decode_job(raw: Mapping[bytes, bytes]) -> Job:
    """Return the job of its hash in Redis.

    Raises:
        ValueError: the hash does not hold a job.
    """
    texts = {key.decode(): value.decode() for key, value in raw.items()}
    found: _JobHash = checked(texts, _JobHash, "a job's hash", strict=False)
    accepted = (JobStatus.BLOCKED, JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.COMPLETED)
    if found.chunks is None and found.status in accepted:
        raise ValueError(f"a job's hash: it is {found.status} and has no chunks")
    code = found.failure_code
    return Job(
        spec=JobSpec.decode(found.spec),
        status=found.status,
        chunks=found.chunks,
        records=found.records,
        round=found.round,
        counts=Counts(found.succeeded, found.failed, found.truncated),
        accepted_at=found.accepted_at,
        started_at=found.started_at,
        finished_at=found.finished_at,
        failure=Failure(one_line(code, 80), one_line(found.failure_message)) if code else None,
        stage=one_line(found.stage),
        run_info=_json_object(found.run_info),
        progress=_json_object(found.progress),
        producer_seen=found.producer_seen,
        noted_ranges=NotedRanges.decode(found.ranges_id, found.ranges) if found.ranges else None,
        unblocked=found.unblocked,
        notification=_notification(found),
    )


def _notification(found: _JobHash) -> Notification | None:
    if found.notify_state is None:
        return None
    times = (found.notify_last_at, found.notify_next_at)
    return Notification(found.notify_state, found.notify_attempts, *times, one_line(found.notify_error))


def _check_template(text: str) -> None:
    try:
        Template.parse(text)
    except ValueError as error:
        raise ValueError(f"a job's template: {error}") from error


def _json_object(text: str) -> Mapping[str, Json]:
    value: Any = json.loads(text) if text != "{}" else {}  # as of most jobs in a long list
    return value if isinstance(value, dict) else {}


def check_label(key: Json, value: Json) -> None:
    """Check one label of a job.

    Raises:
        ValueError: the key or the value cannot be one.
    """
    checked(key, LabelKey, "a label's key")
    checked(value, LabelValue, "a label's value")


def iso_time(seconds: float | None) -> str | None:
    """Return a time since the epoch in ISO 8601, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def truncate_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the first of many names, and how many more there are: workers read a job for each of its chunks."""
    size = 0
    for kept, name in enumerate(names):
        size += len(name)
        if kept and size > MAX_INPUT_NAMES:
            return (*names[:kept], f"and {len(names) - kept:,} more")
    return tuple(names)


def short_model(model: str | None) -> str:
    """Return a model's name; of a path, its last two parts."""
    if model is None:
        return ""
    return "/".join(model.rstrip("/").split("/")[-2:]) if model.startswith("/") else model


def new_job_id() -> str:
    """Return a job id: twelve hexadecimal digits, random."""
    return secrets.token_hex(6)
