"""Options that several commands have, each written once."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from common.jobs import PRIORITIES, JobStatus

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")

json_lines_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON lines on a terminal too; the job in JSON where nothing is waited for."
)

output_option = click.option(
    "-o",
    "--output",
    metavar="FILE|DIR/",
    help="Write .jsonl, .csv, .parquet or .npy, or a part for each chunk into a directory.",
)

part_format_option = click.option(
    "--output-format",
    type=click.Choice(["parquet", "jsonl"]),
    help="How the parts in DIR/ are written.  [default: parquet]",
)

csv_safe_option = click.option(
    "--csv-safe", is_flag=True, help="Put a ' before cells of a .csv that a spreadsheet would run as formulas."
)

quoting_option = click.option(
    "--quoting",
    type=click.Choice(["double", "none"]),
    help="Whether fields of csv and tsv may be in double quotes.  [default: double for csv, none for tsv]",
)

revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")

priority_option = click.option(
    "--priority",
    type=click.Choice(list(reversed(PRIORITIES))),
    default="normal",
    show_default=True,
    help="Whose turns come first.",
)

name_option = click.option("--name", metavar="TEXT", help="Your own word for the job.")


def label_option(text: str = "A word of your own to find the job by; repeatable.") -> Callable[[F], F]:
    """Return the option `-l`, with that help."""
    return click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help=text)


status_option = click.option(
    "--status", type=click.Choice([str(status) for status in JobStatus]), help="Only those that stand so."
)


keep_alive_option = click.option(
    "--keep-alive",
    metavar="SPAN",
    help="How long the embedded worker stays afterwards, as 5m.  [default: 5m on a terminal, else 0]",
)


def _complete_jobs(_context: click.Context, _parameter: click.Parameter, prefix: str) -> list[CompletionItem]:
    from producer.cli.completion import complete_jobs

    return complete_jobs(prefix)


def _complete_tasks(_context: click.Context, _parameter: click.Parameter, prefix: str) -> list[CompletionItem]:
    from producer.cli.completion import complete_tasks

    return complete_tasks(prefix)


job_argument = click.argument("job", shell_complete=_complete_jobs)


def task_option(**more: Any) -> Callable[[F], F]:
    """Return the option `--task`, whose words shells complete."""
    return click.option("--task", metavar="TASK", shell_complete=_complete_tasks, **more)


def jobs_argument(command: F) -> F:
    """Let a command take jobs by their ids, by name or by labels."""
    command = label_option("Jobs that have this label; repeatable, all must fit.")(command)
    command = click.option("--name", metavar="TEXT", help="Jobs of that name; * stands for any text.")(command)
    return click.argument("jobs", nargs=-1, metavar="JOB...", shell_complete=_complete_jobs)(command)
