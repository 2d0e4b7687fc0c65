"""Submit options: one frozen object that the command line, the client and the plan share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from common.errors import UsageError
from common.own_columns import OUTPUT_COLUMN
from common.records import Json


class HasJobId(Protocol):
    """A job handle, for type checkers."""

    @property
    def id(self) -> str:
        """The job's id."""


#: Jobs that a job is to wait for: one or several ids, prefixes, `@last`, or job handles.
AfterArg = str | HasJobId | Sequence[str | HasJobId]


def job_names(after: AfterArg) -> tuple[str, ...]:
    """Return the names of the jobs in such an argument.

    Raises:
        UsageError: It holds something else.
    """
    jobs = after if isinstance(after, Sequence) and not isinstance(after, str) else (after,)
    names = [job if isinstance(job, str) else getattr(job, "id", None) for job in jobs]
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"after: expected ids of jobs or job handles, found {after!r:.100}.")
    return tuple(map(str, names))


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitOptions:
    """The options of `producer submit` and `Client.submit`, without the records; all defaults are here."""

    task: str | None = None  #: as `producer tasks` lists them; None: the requests of an OpenAI batch file name it
    model: str | None = None  #: Hub id, directory on the worker's machine, or `job:ID`; None: the task's default
    revision: str | None = None  #: branch, tag or commit of a Hub model
    params: Mapping[str, Json] | Sequence[str] | None = ()  #: of the task, such as `{"top_k": 3}` or `["top_k=3"]`
    dtype: str | None = None  #: float32, bfloat16, float16, int8 (CPUs), float8 (GPUs); None: the worker's default
    column: str | None = None  #: column (or key) of the input
    template: str | None = None  #: the text, with names of columns in braces; instead of `column`
    system: str | None = None  #: text-generation: the message before each chat
    chat: bool | None = None  #: text-generation: ask texts as messages; None: with `system`, and of the default model
    id_column: str | None = None  #: column of the id; None: `id` or `custom_id`, otherwise the number from 0
    format: str | None = None  #: of the files, None: by their extension; `openai`: they are batch files
    quoting: str | None = None  #: `double` or `none`, for fields of CSV and TSV; None: as usual for the format
    limit: int | None = None  #: number of records to submit, from the first; None for all
    keep: str | Sequence[str] = "all"  #: own columns that results repeat: `all`, `none`, or names, such as "a,b"
    name: str | None = None
    labels: Mapping[str, str] | None = None  #: such as `{"run": "7"}`
    priority: str = "normal"  #: low, normal or high
    device: str = "auto"  #: auto, cpu or gpu: which workers may run it
    chunk_size: int | None = None  #: records in a chunk at most; None: the task's default
    max_errors: str | int | None = None  #: end the job after more failed records than this, such as 10 or "5%"
    after: AfterArg = ()  #: jobs that it waits for: ids, prefixes, `@last`, or job handles
    after_any: bool = False  #: run after these in any case; otherwise it is cancelled when one fails
    idempotency_key: str | None = None  #: all submits with the same key are one job
    store: str | None = None  #: where records and outcomes are kept; None: HUGQUEUE_STORE_URL, otherwise Redis
    output: str | Path | None = None
    output_format: str | None = None  #: of the parts in a directory: parquet (default) or jsonl
    output_column: str = OUTPUT_COLUMN  #: the name of the results' column or key with the output
    public: bool = False  #: create the dataset of `output` on the Hub as a public one
    csv_safe: bool = False  #: escape CSV cells that a spreadsheet would run
    notify: str | None = None  #: URL to notify when the job has ended; None: HUGQUEUE_NOTIFY_URL; empty: none
    wait: bool | None = None  #: None: if the command has results to write, or its worker ends with it


class SubmitKeywords(TypedDict, total=False):
    """The keywords of `Client.submit`, for type checkers: fields of `SubmitOptions`."""

    task: str | None
    model: str | None
    revision: str | None
    params: Mapping[str, Json] | Sequence[str] | None
    dtype: str | None
    column: str | None
    template: str | None
    system: str | None
    chat: bool | None
    id_column: str | None
    format: str | None
    quoting: str | None
    limit: int | None
    keep: str | Sequence[str]
    name: str | None
    labels: Mapping[str, str] | None
    priority: str
    device: str
    chunk_size: int | None
    max_errors: str | int | None
    after: AfterArg
    after_any: bool
    idempotency_key: str | None
    store: str | None
    notify: str | None
    output: str | Path | None
    output_format: str | None
    output_column: str
