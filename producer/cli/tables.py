"""Tables for people, made with rich. Scripts use `--json`."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import NoReturn

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.durations import duration
from common.jobs import Job, JobStatus, short_model
from common.models.registry import RegisteredModel
from common.queue.heartbeats import Heartbeat
from common.records import Json
from common.tasks import Task
from common.text import one_line
from producer.cli.training_progress import format_metrics

_COLOURS = {
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELLED: "yellow",
    JobStatus.CANCELLING: "yellow",
    JobStatus.RUNNING: "cyan",
}


class Kind(Enum):
    """What becomes of a column where the terminal is too narrow."""

    WHOLE = "whole"  # it stays: ids, statuses
    NUMBER = "number"  # it stays, and stands at the right
    CUT = "cut"  # it is cut
    WRAPPED = "wrapped"  # it goes on in further lines, between words


Columns = Mapping[str, Kind]
RESULT_COLUMNS = {"ID": Kind.WHOLE, "INPUT": Kind.CUT, "OUTPUT": Kind.WRAPPED}
#: Characters between two columns, and of a column that gives way at least.
_GAP, _LEAST = 2, 6
#: Seconds between two looks at jobs that are watched.
_WATCH_SECONDS = 2.0


def show(columns: Columns, rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table that fits into the terminal; in a pipe nothing is cut."""
    _print(_table(columns, rows, Console().width if sys.stdout.isatty() else None))


def _table(columns: Columns, rows: Iterable[Sequence[str | Text]], width: int | None) -> Table:
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(header), *(row[at].cell_len for row in cells)]) for at, header in enumerate(columns)]
    if width is not None:
        _narrow(widths, list(columns.values()), width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for (header, kind), taken in zip(columns.items(), widths, strict=True):
        wrapped = kind is Kind.WRAPPED
        table.add_column(
            header,
            width=taken,
            no_wrap=not wrapped,
            overflow="fold" if wrapped else "ellipsis",
            justify="right" if kind is Kind.NUMBER else "left",
        )
    for row in cells:
        table.add_row(*row)
    return table


def _narrow(widths: list[int], kinds: Sequence[Kind], total: int) -> None:
    """Take from the widest columns that give way until all fit, or give way no further."""
    giving = [at for at, kind in enumerate(kinds) if kind in (Kind.CUT, Kind.WRAPPED)]
    for _ in range(sum(widths) + _GAP * (len(widths) - 1) - total):
        widest = max(giving, key=lambda at: widths[at], default=None)
        if widest is None or widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def _show_fields(fields: Mapping[str, str | Text | list[str]]) -> None:
    """Print names and values, line by line; what is empty is left out, a list has a line for each of its texts."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value:
            lines = value if isinstance(value, list) else [value]
            table.add_row(name, Text("\n").join(map(_cell, lines)))
    _print(table)


def _cell(value: str | Text) -> Text:
    return value if isinstance(value, Text) else Text(one_line(value))


def _print(table: Table) -> None:
    """Print a table; in a pipe as wide as it needs, so that nothing is cut, and without blanks at the ends."""
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=4096, no_color=True)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


_JOB_COLUMNS = {
    "JOB": Kind.WHOLE,
    "STATUS": Kind.WHOLE,
    "TASK": Kind.CUT,
    "MODEL": Kind.CUT,
    "DONE": Kind.NUMBER,
    "FAILED": Kind.NUMBER,
    "AGE": Kind.NUMBER,
    "NAME": Kind.CUT,
}


def show_jobs(jobs: Iterable[Job]) -> None:
    """Print one line for each job."""
    show(_JOB_COLUMNS, map(_job_row, jobs))


def watch_jobs(look: Callable[[], Sequence[Job]]) -> NoReturn:
    """Show on a terminal what `look` gives, again and again; Ctrl-C ends it."""
    with Live(auto_refresh=False) as live:
        while True:
            console = live.console
            live.update(_table(_JOB_COLUMNS, map(_job_row, look()), console.width), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _job_row(job: Job) -> tuple[str | Text, ...]:
    return (
        job.id,
        _status(job),
        job.spec.task,
        short_model(job.spec.model),
        f"{job.counts.done:,}/{f'{job.records:,}' if job.records is not None else '?'}",
        f"{job.counts.failed:,}",
        duration(time.time() - job.spec.created_at),
        job.spec.name or "",
    )


def show_job(job: Job, refusals: Mapping[str, str]) -> None:
    """Print all about one job; `refusals` tells which workers pass it over, and why."""
    spec = job.spec
    _show_fields(
        {
            "job": job.id + (f" ({spec.name})" if spec.name else ""),
            "status": _status(job).append(f" ({job.stage})" if job.stage else ""),
            "error": f"{job.failure.code}: {job.failure.message}" if job.failure else "",
            "refused": [f"by {worker}: {reason}" for worker, reason in refusals.items()],
            "task": spec.task,
            "model": (spec.model or "none") + (f" @ {spec.revision}" if spec.revision else ""),
            "params": ", ".join(f"{key}={value}" for key, value in spec.params.items()),
            "labels": ", ".join(f"{key}={value}" for key, value in spec.labels.items()),
            "inputs": ", ".join(spec.inputs) + (f" (the first {spec.limit:,})" if spec.limit else ""),
            "queue": f"{spec.queue}, priority {spec.priority}",
            "records": _counts(job),
            "chunks": f"{job.chunks or 0:,}" + (f", round {job.round + 1}" if job.round else ""),
            "submitted": f"{datetime.fromtimestamp(spec.created_at):%Y-%m-%d %H:%M:%S}",
            "time": _time(job),
            "ran on": _facts(job.run_info),
            "metrics": ", ".join(format_metrics(job.progress)),
            "notes": list(map(str, job.progress.get("notes") or ())),
        }
    )


def _status(job: Job) -> Text:
    return Text(str(job.status), style=_COLOURS.get(job.status, ""))


def _counts(job: Job) -> str:
    counts = job.counts
    text = f"{counts.done:,} of {job.records or 0:,} done, {counts.failed:,} failed"
    return text + (f", {counts.truncated:,} truncated" if counts.truncated else "")


def _time(job: Job) -> str:
    if job.started_at is None:
        return ""
    seconds = (job.finished_at or time.time()) - job.started_at
    if job.round or job.spec.training:  # the counts are those of all rounds, or of the one record of a fine-tune job
        return duration(seconds)
    return f"{duration(seconds)}, {job.counts.done / max(seconds, 0.001):,.0f} records/s"


def _facts(run_info: Mapping[str, Json]) -> str:
    """Return what ran besides task and model, which the job itself tells."""
    versions = run_info.get("versions")
    known = {
        "device": run_info.get("device"),
        "dtype": run_info.get("dtype"),
        "attention": run_info.get("attention"),
        "model commit": run_info.get("commit"),
        **(versions if isinstance(versions, dict) else {}),
    }
    return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)


def show_models(models: Iterable[RegisteredModel]) -> None:
    """Print the fine-tuned models of a store."""
    columns = {
        "MODEL": Kind.WHOLE,
        "TASK": Kind.CUT,
        "FROM": Kind.CUT,
        "METRICS": Kind.WRAPPED,
        "EXAMPLES": Kind.NUMBER,
        "AGE": Kind.NUMBER,
    }
    rows = (
        (
            f"job:{model.job_id}",
            str(model.card.get("task")),
            short_model(str(model.card.get("base_model"))),
            ", ".join(f"{name} {value:.4g}" for name, value in (model.card.get("metrics") or {}).items()),
            str((model.card.get("examples") or {}).get("train", "")),
            duration(time.time() - float(model.card.get("finished_at") or 0)),
        )
        for model in models
    )
    show(columns, rows)


def show_tasks(tasks: Iterable[tuple[str, Task]]) -> None:
    """Print the tasks."""
    columns = {
        "TASK": Kind.WHOLE,
        "FIELDS OF A RECORD": Kind.WRAPPED,
        "GIVES": Kind.WRAPPED,
        "DEFAULT MODEL": Kind.CUT,
    }
    show(columns, ((name, _fields(task), task.summary, task.model or "") for name, task in tasks))


def _fields(task: Task) -> str:
    return " ".join([task.required_fields, *(f"[{name}]" for name in task.optional)])


def show_workers(workers: Iterable[Heartbeat]) -> None:
    """Print the live workers."""
    columns = {
        "WORKER": Kind.CUT,
        "STATE": Kind.WHOLE,
        "DEVICE": Kind.CUT,
        "QUEUES": Kind.CUT,
        "RECORDS/S": Kind.NUMBER,
        "DONE": Kind.NUMBER,
        "MEMORY": Kind.NUMBER,
        "MODELS": Kind.CUT,
    }
    rows = (
        (
            worker.name,
            worker.state,
            f"{worker.device} ({worker.device_name})",
            ", ".join(worker.queues),
            f"{worker.records_per_second:,.0f}",
            f"{worker.records_done:,}",
            f"{worker.memory_bytes / 2**20:,.0f} MiB",
            ", ".join(short_model(str(model.get("model"))) for model in worker.models),
        )
        for worker in workers
    )
    show(columns, rows)
