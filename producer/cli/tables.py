"""Tables on stdout, made with rich. Scripts use `--json`."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.display_text import one_line
from common.durations import format_duration
from common.jobs import Job, JobStatus, short_model
from common.models.registry import RegisteredModel
from common.notifications import NotificationState, mask_notify_url
from common.queue.heartbeats import Heartbeat
from common.records import Json
from common.tasks import Task
from producer.cli.progress import format_metrics

#: Characters of a parameter or a template that are shown.
_MAX_SHOWN = 300
_COLORS = {
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
    JobStatus.CANCELLING: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.BLOCKED: "dim",
}


class Fit(Enum):
    """How a column behaves if the terminal is too narrow."""

    FIXED = "fixed"  # keeps its width: ids, statuses
    NUMBER = "number"  # keeps its width, and is aligned to the right
    ELLIPSIS = "ellipsis"  # is cut
    WRAPPED = "wrapped"  # continues on further lines


class Column(NamedTuple):
    """A column of a table."""

    header: str
    fit: Fit
    value: Callable[[Any], str | Text]  #: the cell of a row


RESULT_COLUMNS = (
    Column("ID", Fit.FIXED, itemgetter(0)),
    Column("INPUT", Fit.ELLIPSIS, itemgetter(1)),
    Column("OUTPUT", Fit.WRAPPED, itemgetter(2)),
)
#: Seconds between two updates of `producer jobs --watch`.
_WATCH_SECONDS = 2.0


def show(columns: Sequence[Column], rows: Iterable[Any]) -> None:
    """Print a table that fits into the terminal; in a pipe nothing is cut."""
    _print(_table(columns, rows))


def _table(columns: Sequence[Column], rows: Iterable[Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header, fit, _ in columns:
        # If the table is too wide, Rich narrows the columns that may wrap, the widest first.
        table.add_column(
            header,
            no_wrap=fit in (Fit.FIXED, Fit.NUMBER),
            overflow="fold" if fit is Fit.WRAPPED else "ellipsis",
            justify="right" if fit is Fit.NUMBER else "left",
        )
    for row in rows:
        table.add_row(*(_cell(value(row), cut=fit is Fit.ELLIPSIS) for _, fit, value in columns))
    return table


def _show_fields(fields: Mapping[str, str | Text | list[str]]) -> None:
    """Print names and values line by line; empty values are left out, a list has one line per text."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value:
            lines = value if isinstance(value, list) else [value]
            table.add_row(name, Text("\n").join(map(_cell, lines)))
    _print(table)


def _cell(value: str | Text, *, cut: bool = False) -> Text:
    text = value if isinstance(value, Text) else Text(one_line(value))
    if cut:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _print(table: Table) -> None:
    """Print a table; in a pipe as wide as necessary, and without trailing blanks."""
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=4096, no_color=True)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _age(since: float) -> str:
    return format_duration(time.time() - since)


def _status(job: Job) -> Text:
    return Text(str(job.status), style=_COLORS.get(job.status, ""))


_JOB_COLUMNS = (
    Column("JOB", Fit.FIXED, lambda job: job.id),
    Column("STATUS", Fit.FIXED, _status),
    Column("TASK", Fit.ELLIPSIS, lambda job: job.spec.task),
    Column("MODEL", Fit.ELLIPSIS, lambda job: short_model(job.spec.model)),
    Column(
        "DONE",
        Fit.NUMBER,
        lambda job: f"{job.counts.done:,}/{'?' if job.records is None else f'{job.records:,}'}",
    ),
    Column("FAILED", Fit.NUMBER, lambda job: f"{job.counts.failed:,}"),
    Column("AGE", Fit.NUMBER, lambda job: _age(job.spec.created_at)),
    Column("NAME", Fit.ELLIPSIS, lambda job: job.spec.name or ""),
)


def show_jobs(jobs: Iterable[Job]) -> None:
    """Print one line per job."""
    show(_JOB_COLUMNS, jobs)


def watch_jobs(find: Callable[[], Sequence[Job]]) -> NoReturn:
    """Show the jobs that `find` returns, and refresh them until Ctrl-C."""
    with Live(auto_refresh=False) as live:
        while True:
            live.update(_table(_JOB_COLUMNS, find()), refresh=True)
            time.sleep(_WATCH_SECONDS)


def show_job(job: Job, refusals: Mapping[str, str], waits: str) -> None:
    """Print all details of a job.

    Args:
        job: the job.
        refusals: workers that skip it, and their reasons.
        waits: what it waits for, in words; empty if for nothing.
    """
    spec, progress = job.spec, job.progress
    _show_fields(
        {
            "job": job.id + _in_brackets(spec.name),
            "status": _status(job).append(_in_brackets(waits or job.stage)),
            "error": f"{job.failure.code}: {job.failure.message}" if job.failure else "",
            "skipped": [f"by {worker}: {reason}" for worker, reason in refusals.items()],
            "task": spec.task,
            "model": (spec.model or "none") + (f" @ {spec.revision}" if spec.revision else ""),
            "params": _pairs(spec.shown_params),
            "template": one_line(spec.template or "", _MAX_SHOWN),
            "labels": _pairs(spec.labels),
            "inputs": ", ".join(spec.inputs) + _in_brackets(f"the first {spec.limit:,}" if spec.limit else ""),
            "queue": f"{spec.queue}, priority {spec.priority}",
            "after": ", ".join(spec.after) + _in_brackets("even if they fail" if spec.after_any else ""),
            "records": _counts(job),
            "chunks": f"{job.chunks or 0:,}" + (f", retry {job.round}" if job.round else ""),
            "submitted": _clock(spec.created_at),
            "time": _time(job),
            "notify": _notification(job),
            "ran on": _run_info(job.run_info),
            "metrics": format_metrics({"loss": progress.get("loss"), **(progress.get("metrics") or {})}),
            "notes": list(map(str, progress.get("notes") or ())),
        }
    )


def _in_brackets(text: str | None) -> str:
    return f" ({text})" if text else ""


def _pairs(values: Mapping[str, Json]) -> str:
    return ", ".join(f"{key}={one_line(str(value), _MAX_SHOWN)}" for key, value in values.items())


def _counts(job: Job) -> str:
    counts = job.counts
    text = f"{counts.done:,} of {job.records or 0:,} done, {counts.failed:,} failed"
    return text + (f", {counts.truncated:,} truncated" if counts.truncated else "")


def _time(job: Job) -> str:
    if job.started_at is None:
        return ""
    seconds = (job.finished_at or time.time()) - job.started_at
    if job.round or job.spec.training:  # the counts are those of all rounds, or of the one record of a fine-tune job
        return format_duration(seconds)
    return f"{format_duration(seconds)}, {job.counts.done / max(seconds, 0.001):,.0f} records/s"


def _notification(job: Job) -> str:
    """Return the URL to notify when the job has ended, and the state of delivery."""
    if job.spec.notify is None:
        return ""
    url, known = mask_notify_url(job.spec.notify), job.notification
    if known is None:
        return f"{url} (when the job has ended)"
    attempts = f"{known.attempts} {'attempt' if known.attempts == 1 else 'attempts'}"
    failed = f" after {attempts}: {known.error}" if known.error else ""
    match known.state:
        case NotificationState.DELIVERED:
            return f"{url} (delivered at {_clock(known.last_attempt_at)}, {attempts})"
        case NotificationState.GIVEN_UP:
            return f"{url} (given up{failed})"
    return f"{url} (next attempt at {_clock(known.next_attempt_at)}{failed})"


def _clock(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds or 0):%Y-%m-%d %H:%M:%S}"


def _run_info(run_info: Mapping[str, Json]) -> str:
    """Return what the job ran on: device, dtype, engine, attention, model commit and versions."""
    versions = run_info.get("versions")
    values = {
        "device": run_info.get("device"),
        "dtype": run_info.get("dtype"),
        "engine": _engine(run_info),
        "attention": run_info.get("attention"),
        "vectors": run_info.get("vectors"),
        "model commit": run_info.get("commit"),
        **(versions if isinstance(versions, dict) else {}),
    }
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _engine(run_info: Mapping[str, Json]) -> str | None:
    """Return what generated the texts, and why it was not the engine that the worker has; None without one."""
    engine, refused = run_info.get("engine"), run_info.get("engine_refused")
    return f"{engine} (not by {refused})" if refused else engine


def show_models(models: Iterable[RegisteredModel]) -> None:
    """Print fine-tuned models."""
    columns = (
        Column("MODEL", Fit.FIXED, lambda model: f"job:{model.job_id}"),
        Column("TASK", Fit.ELLIPSIS, lambda model: str(model.card.get("task"))),
        Column("BASE MODEL", Fit.ELLIPSIS, lambda model: short_model(str(model.card.get("base_model")))),
        Column("METRICS", Fit.WRAPPED, lambda model: format_metrics(model.card.get("metrics") or {})),
        Column("EXAMPLES", Fit.NUMBER, lambda model: str((model.card.get("examples") or {}).get("train", ""))),
        Column("AGE", Fit.NUMBER, lambda model: _age(float(model.card.get("finished_at") or 0))),
    )
    show(columns, models)


def show_tasks(tasks: Iterable[tuple[str, Task]]) -> None:
    """Print the names of tasks with their properties; optional fields are in brackets."""
    columns = (
        Column("TASK", Fit.FIXED, itemgetter(0)),
        Column("INPUT FIELDS", Fit.WRAPPED, lambda row: _fields(row[1])),
        Column("OUTPUT", Fit.WRAPPED, lambda row: row[1].summary),
        Column("DEFAULT MODEL", Fit.ELLIPSIS, lambda row: row[1].model or ""),
    )
    show(columns, tasks)


def _fields(task: Task) -> str:
    return " ".join([task.required_fields, *(f"[{name}]" for name in task.optional)])


def show_workers(workers: Iterable[Heartbeat]) -> None:
    """Print the live workers."""
    columns = (
        Column("WORKER", Fit.ELLIPSIS, lambda worker: worker.name),
        Column("STATE", Fit.FIXED, lambda worker: worker.state),
        Column("DEVICE", Fit.ELLIPSIS, lambda worker: f"{worker.device} ({worker.device_name})"),
        Column("QUEUES", Fit.ELLIPSIS, lambda worker: ", ".join(worker.queues)),
        Column("RECORDS/S", Fit.NUMBER, lambda worker: f"{worker.records_per_second:,.0f}"),
        Column("DONE", Fit.NUMBER, lambda worker: f"{worker.records_done:,}"),
        Column("MEMORY", Fit.NUMBER, lambda worker: f"{worker.memory_bytes / 2**20:,.0f} MiB"),
        Column(
            "MODELS",
            Fit.ELLIPSIS,
            lambda worker: ", ".join(short_model(str(model.get("model"))) for model in worker.models),
        ),
    )
    show(columns, workers)
