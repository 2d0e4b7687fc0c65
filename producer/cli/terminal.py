"""Terminal output: answers on stdout, messages on stderr, and exit statuses."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from common.console import print_stderr
from common.display_text import replace_control_chars
from common.jobs import JobStatus
from common.records import Json

if TYPE_CHECKING:
    from common.jobs import Job
    from producer.submit.dry_run import DryRunReport

#: Called with a message for the user.
Notify = Callable[[str], None]

#: Exit status if the job completed, but some records failed. `common.errors` has those of errors (1) and usage (2).
SOME_FAILED = 3

_quiet = False


def set_quiet() -> None:
    """Print only answers and errors from now on."""
    global _quiet  # noqa: PLW0603 - one setting per process
    _quiet = True


def is_quiet() -> bool:
    """Return whether only answers and errors are printed."""
    return _quiet


def notify(text: str) -> None:
    """Print a message to stderr, unless `--quiet` is set."""
    if not _quiet:
        print_stderr(text)


def print_json(value: Json) -> None:
    """Print a JSON document to stdout."""
    text = replace_control_chars(json.dumps(value, ensure_ascii=False, indent=2))
    click.echo(text.encode())  # JSON is UTF-8, regardless of the locale


def exit_status(job: "Job") -> int:
    """Return the exit status for a finished job."""
    if job.status is not JobStatus.COMPLETED:
        return 1
    return SOME_FAILED if job.counts.failed else 0


def dry_run_status(report: "DryRunReport") -> int:
    """Return the exit status of `submit --dry-run`."""
    if not report.served:
        return 1
    return SOME_FAILED if report.bad else 0
