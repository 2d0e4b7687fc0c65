"""Options and arguments shared by several commands."""

from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from common.errors import HugqueueError
from common.jobs import PRIORITIES, JobStatus

F = TypeVar("F", bound=Callable[..., Any])

#: Jobs that completion offers, the newest first, and jobs that it examines for that.
_MAX_OFFERED, _MAX_EXAMINED = 20, 1000

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

json_lines_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, also on a terminal: the results, or the job without --wait."
)

output_option = click.option(
    "-o",
    "--output",
    metavar="FILE|DIR/|hf:ORG/NAME[:SPLIT]",
    help="Write results to a .jsonl, .csv, .parquet or .npy file, one file per chunk to a directory, or a dataset on "
    "the Hub.",
)

part_format_option = click.option(
    "--output-format",
    type=click.Choice(["parquet", "jsonl", "files"]),
    help="Format of DIR/: one parquet or jsonl file per chunk, or files, one for each image or sound.  "
    "[default: parquet]",
)

csv_safe_option = click.option(
    "--csv-safe", is_flag=True, help="Prefix CSV cells that a spreadsheet would run as formulas with '."
)


public_option = click.option(
    "--public", is_flag=True, help="Make the new dataset on the Hub public.  [default: private]"
)


def output_options(command: F) -> F:
    """Add the options that name an output; a command passes them to `open_target`."""
    return output_option(part_format_option(csv_safe_option(public_option(command))))


quoting_option = click.option(
    "--quoting",
    type=click.Choice(["double", "none"]),
    help="Quoting of CSV and TSV fields.  [default: double for csv, none for tsv]",
)

revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")

priority_option = click.option(
    "--priority",
    type=click.Choice(list(reversed(PRIORITIES))),
    default="normal",
    show_default=True,
    help="Scheduling priority.",
)


def param_option(text: str) -> Callable[[F], F]:
    """Return the option `-p` with this help text."""
    return click.option("-p", "--param", "params", multiple=True, metavar="KEY=VALUE", help=text)


notify_option = click.option(
    "--notify",
    metavar="URL",
    help="Send a POST request to this URL when the job has ended.  [default: HUGQUEUE_NOTIFY_URL, else none]",
)

name_option = click.option("--name", metavar="TEXT", help="A name for the job.")


def label_option(text: str = "A label for the job; repeatable.") -> Callable[[F], F]:
    """Return the option `-l` with this help text."""
    return click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help=text)


status_option = click.option(
    "--status",
    type=click.Choice([str(status) for status in JobStatus]),
    metavar="STATUS",
    help=f"Only jobs with this status: {', '.join(JobStatus)}.",
)

keep_alive_option = click.option(
    "--keep-alive",
    metavar="SPAN",
    help="How long to keep the embedded worker afterwards, such as 5m.  [default: 5m on a terminal, else 0]",
)


def complete_tasks(_context: click.Context, _parameter: click.Parameter, prefix: str) -> list[CompletionItem]:
    """Return the tasks that start with `prefix`."""
    from common.tasks import list_tasks

    return [CompletionItem(name, help=task.summary) for name, task in list_tasks() if name.startswith(prefix)]


def complete_jobs(_context: click.Context, _parameter: click.Parameter, prefix: str) -> list[CompletionItem]:
    """Return the newest jobs whose id starts with `prefix`; none if Redis does not answer at once."""
    from common.settings import load_settings
    from producer.embedded.redis_server import ServerState, probe
    from producer.embedded.state_dir import StateDir
    from producer.queue_connection import LAST, QueueConnection

    try:
        settings = load_settings()
        if settings.embedded:
            settings = StateDir.of(settings).apply_to(settings)
        if probe(settings.broker_url or "") is not ServerState.READY:
            return []
        connection = QueueConnection(settings)
        with connection.errors():
            jobs = islice(connection.store.each_job(), _MAX_EXAMINED)
            found = [job for job in jobs if job.id.startswith(prefix)]
    except HugqueueError:
        return []
    items = [CompletionItem(LAST, help="the newest")] if LAST.startswith(prefix) else []
    return items + [
        CompletionItem(job.id, help=f"{job.status} {job.spec.name or job.spec.task}") for job in found[:_MAX_OFFERED]
    ]


job_argument = click.argument("job", shell_complete=complete_jobs)

after_option = click.option(
    "--after",
    multiple=True,
    metavar="JOB",
    shell_complete=complete_jobs,
    help="Start when this job is completed, and be cancelled if it fails; repeatable.",
)

after_any_option = click.option(
    "--after-any", is_flag=True, help="Start when the jobs of --after have ended, even if they failed."
)


def task_option(**more: Any) -> Callable[[F], F]:
    """Return the option `--task`."""
    return click.option("--task", metavar="TASK", shell_complete=complete_tasks, **more)


def jobs_argument(command: F) -> F:
    """Add the argument and options that select jobs: ids, or name and labels."""
    command = label_option("Select jobs with this label; if repeated, all must match.")(command)
    command = click.option("--name", metavar="TEXT", help="Select jobs with this name; * matches any text.")(command)
    return click.argument("jobs", nargs=-1, metavar="JOB...", shell_complete=complete_jobs)(command)
