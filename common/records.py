"""The values that producer and workers exchange: jobs, records, outcomes.

Each is frozen, and `encode`/`decode` stand beside it. What comes out of Redis is untrusted:
`decode` checks every field and raises `ValueError` on what does not fit.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from types import NoneType
from typing import Any

#: A JSON value: None, bool, int, float, str, list or dict of them.
Json = Any

#: How many failed records end a job early: a number, or per cent of its records.
MAX_ERRORS = re.compile(r"^(\d{1,12}|\d{1,2}(\.\d+)?%)$")
#: What a model may compute in; `auto` leaves it to the device.
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
QUEUES = ("any", "cpu", "gpu", "train")
#: The queue of fine-tune jobs.
TRAIN = "train"
#: Priority names and what Celery's Redis transport makes of them: 0 is the highest there.
PRIORITIES = {"high": 0, "normal": 3, "low": 6}

#: The key of a label; and how many a job may have, and how long a value may be.
LABEL_KEY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}\Z")
MAX_LABELS, MAX_LABEL_VALUE = 64, 256
#: Characters at most of the texts of a job that name something; a path has no more.
MAX_NAMES = {"task": 256, "model": 4096, "revision": 256, "name": 256, "store": 4096}
#: The same of each of its inputs.
MAX_INPUT = 8192

#: Characters of the names of inputs that a job keeps.
MAX_INPUT_NAMES = 2000

JOB_ID = re.compile(r"^[0-9a-f]{12}\Z")

#: No time of a job is later, in seconds since the epoch (the year 5138): datetime goes to 9999.
MAX_TIMESTAMP = 1e11
#: Control characters but for tab and line feed, and lone surrogates.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class JobStatus(StrEnum):
    """Where a job stands."""

    SUBMITTING = "submitting"  # its producer is still writing chunks
    QUEUED = "queued"  # accepted, no chunk leased yet
    RUNNING = "running"  # at least one chunk was leased
    COMPLETED = "completed"  # every record has an outcome (which may be a failure)
    FAILED = "failed"  # ended early, for the reason in its `failure`
    CANCELLING = "cancelling"  # the user asked to stop; chunks in hand are being dropped
    CANCELLED = "cancelled"  # stopped; what was done is kept

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to the job, unless it is retried."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record or a job has no result."""

    code: str  #: a name from `docs/errors.md`
    message: str  #: one sentence for a person

    def as_dict(self) -> dict[str, Json]:
        """Return what users get as `error`."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class Record:
    """One input, with its id."""

    id: Json  #: the record's own id, kept as it is, or its line number from 0
    input: Json  #: text, or an object with the fields of the task; None if it could not be read
    failure: Failure | None = None  #: why it could not be read; such a record is never run
    blob: bytes | None = None  #: the file that the input names, of a task over images or sound


@dataclass(frozen=True, slots=True)
class FileInput:
    """What a runner is given for a record that came with a file."""

    input: Json  #: as in the record: the file's name, or an object that holds it; never opened
    blob: bytes  #: the file itself, untrusted


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result or the failure of one record."""

    output: Json = None  #: what `transformers.pipeline` would give for it
    failure: Failure | None = None
    truncated: bool = False  #: the input was cut to what the model takes


@dataclass(frozen=True, slots=True)
class Counts:
    """Records of a job or a chunk, by outcome."""

    succeeded: int = 0
    failed: int = 0
    truncated: int = 0  #: of the succeeded

    @property
    def done(self) -> int:
        """How many records have an outcome."""
        return self.succeeded + self.failed


@dataclass(frozen=True, slots=True)
class Output:
    """Where workers write the outcomes of a job, a part for each chunk."""

    address: str  #: an absolute path, or an address
    format: str  #: `parquet` or `jsonl`


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What was submitted; it never changes."""

    id: str
    task: str
    model: str | None = None  #: hub id, path, or `job:ID`; None for a runner that needs none
    revision: str | None = None
    params: Mapping[str, Json] = field(default_factory=dict)  #: runner options, as `top_k`
    queue: str = "any"
    priority: str = "normal"
    name: str | None = None  #: the user's own word for it
    inputs: tuple[str, ...] = ()  #: where the records came from, for people (`shortened`)
    created_at: float = 0.0  #: seconds since the epoch
    max_errors: str | None = None  #: with more failed records the job ends early: `10`, or `5%` of all
    store: str | None = None  #: where its payloads lie, if not in Redis
    output: Output | None = None  #: where workers write its outcomes, if they do
    training: Mapping[str, Json] | None = None  #: of a fine-tune job: its options (`common.training.options`)
    labels: Mapping[str, str] = field(default_factory=dict)  #: the user's own words to find it by
    limit: int | None = None  #: so many records of its inputs at most
    format: str | None = None  #: `openai`: the records are requests of a batch file, and so are the results

    @property
    def kind(self) -> str:
        """What is done with the records: `inference`, or `finetune`."""
        return "inference" if self.training is None else "finetune"

    @property
    def title(self) -> str:
        """The job in a few words, for Flower and logs: no secrets, no payload."""
        name = f" {self.name!r}" if self.name else ""
        return f"job {self.id}{name} · {short_model(self.model) or 'no model'}"

    def max_failed(self, records: int) -> int | None:
        """Return how many of so many records may fail before the job ends early; None: all of them."""
        if self.max_errors is None:
            return None
        share, percent, _ = self.max_errors.partition("%")
        return int(records * float(share) / 100) if percent else int(share)

    def encode(self) -> str:
        """Return the JSON text that `decode` takes, in ASCII: a file's name need not have a UTF-8 form."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> "JobSpec":
        """Return the job of that JSON text.

        Raises:
            ValueError: the text is not JSON, or a field is missing or of the wrong type.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError(f"a job must be a JSON object, found {type(raw).__name__}")
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in raw.items() if key in known}
        _check_spec(values)
        values["inputs"] = tuple(values.get("inputs", ()))
        values["output"] = _output(values.get("output"))
        return cls(**values)


#: What each field of a job's JSON must be.
_SHAPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "task": (str,),
    "model": (str, NoneType),
    "revision": (str, NoneType),
    "name": (str, NoneType),
    "params": (dict,),
    "queue": (str,),
    "priority": (str,),
    "inputs": (list,),
    "created_at": (int, float),
    "max_errors": (str, NoneType),
    "store": (str, NoneType),
    "output": (dict, NoneType),
    "training": (dict, NoneType),
    "labels": (dict,),
    "format": (str, NoneType),
    "limit": (int, NoneType),
}


def _check_spec(values: Mapping[str, Json]) -> None:
    for key in ("id", "task"):
        if key not in values:
            raise ValueError(f"a job without {key}")
    for key, value in values.items():
        if not isinstance(value, _SHAPES[key]):
            raise ValueError(f"a job's {key} cannot be {value!r}")
    _check_texts(values)
    if not JOB_ID.match(values["id"]):
        raise ValueError(f"not a job id: {values['id']!r}")
    _check_queue(values.get("queue", "any"), trains=values.get("training") is not None)
    if not MAX_ERRORS.match(values.get("max_errors") or "0"):
        raise ValueError(f"a job's max_errors cannot be {values['max_errors']!r}")
    if values.get("format") not in (None, "openai"):
        raise ValueError(f"unknown format {values['format']!r}")
    if values.get("priority", "normal") not in PRIORITIES:
        raise ValueError(f"unknown priority {values['priority']!r}")


def _check_queue(queue: str, *, trains: bool) -> None:
    if queue not in QUEUES:
        raise ValueError(f"unknown queue {queue!r}")
    if trains != (queue == TRAIN):
        raise ValueError(f"the queue {TRAIN!r} is for fine-tune jobs, and they for it; found {queue!r}")


def _output(raw: Mapping[str, Json] | None) -> Output | None:
    if raw is None:
        return None
    address, format = raw.get("address"), raw.get("format")
    if not isinstance(address, str) or format not in ("parquet", "jsonl"):
        raise ValueError(f"a job's output cannot be {dict(raw)!r:.200}")
    _check_name("a job's output", address, MAX_NAMES["store"])
    return Output(address, format)


def _check_texts(values: Mapping[str, Json]) -> None:
    for key, most in MAX_NAMES.items():
        _check_name(f"a job's {key}", values.get(key) or "", most)
    for item in values.get("inputs", ()):
        if not isinstance(item, str) or len(item) > MAX_INPUT:
            raise ValueError(f"a job's input is a text of up to {MAX_INPUT:,} characters, found {str(item)[:80]!r}")
    if len(values.get("labels", ())) > MAX_LABELS:
        raise ValueError(f"a job cannot have {len(values['labels'])} labels; at most {MAX_LABELS}")
    for key, value in values.get("labels", {}).items():
        check_label(key, value)
    if not 0 <= values.get("created_at", 0) < MAX_TIMESTAMP:
        raise ValueError(f"a job cannot have been created at {values['created_at']}")


def _check_name(what: str, text: str, most: int) -> None:
    if len(text) > most or not _is_one_line(text):
        raise ValueError(f"{what} is one line of up to {most:,} characters, found {text[:80]!r}")


def _is_one_line(text: str) -> bool:
    return replace_control_chars(text) == text and not any(sign in text for sign in "\t\n\u2028\u2029")


def check_label(key: Json, value: Json) -> None:
    """Check one label of a job.

    Raises:
        ValueError: the key or the value cannot be one.
    """
    if not isinstance(key, str) or not LABEL_KEY.match(key):
        raise ValueError(f"a label's key has up to 63 letters, digits and _ . / -, found {str(key)[:80]!r}")
    if not isinstance(value, str) or len(value) > MAX_LABEL_VALUE or not _is_one_line(value):
        raise ValueError(f"a label's value is a text of up to {MAX_LABEL_VALUE} characters, found {str(value)[:80]!r}")


def replace_control_chars(text: str) -> str:
    """Return a text that others wrote, what a terminal would obey and what has no UTF-8 form replaced."""
    return _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, most: int | None = None) -> str:
    """Return a text that others wrote as one line that can be shown, of so many characters at most."""
    line = replace_control_chars(" ".join(text.split()))
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def shortened(names: Sequence[str]) -> tuple[str, ...]:
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
