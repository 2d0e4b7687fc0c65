"""Giving results: into a file, as JSON lines into a pipe, or as a table on a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from common.jobs import Job
from producer.client import Client
from producer.exits import exit_status
from producer.openai import response_line
from producer.outputs import Row, preview, to_line
from producer.outputs.targets import Target
from producer.saving import save
from producer.tables import show

#: Rows of the table on a terminal; more would push the first ones out of sight.
ROWS = 100


def give_results(
    client: Client, job: Job, output: Target | None, say: Callable[[str], None], *, as_json: bool = False
) -> None:
    """Give the outcomes of `job` where the user wants them; `as_json` gives JSON lines on a terminal too.

    Raises:
        UsageError: the file cannot be written.
    """
    if not job.records:
        return
    rows = client.rows(job, say)
    if output:
        say(save(client, job, output, say))
    elif sys.stdout.isatty() and not as_json and not job.spec.format:
        _show_table(job, rows, say)
    else:
        _write_lines(_lines(job, rows))


def _lines(job: Job, rows: Iterable[Row]) -> Iterator[str]:
    if job.spec.format:
        return (response_line(job.spec, number, row) for number, row in enumerate(rows))
    return map(to_line, rows)


def _write_lines(lines: Iterable[str], *, at_once: bool = False) -> None:
    for line in lines:
        sys.stdout.buffer.write(f"{line}\n".encode())  # JSON is UTF-8, whatever the locale says
        if at_once:
            sys.stdout.flush()


def _show_table(job: Job, rows: Iterator[Row], say: Callable[[str], None]) -> None:
    # Of a job that was stopped, what was not run would be most of the table.
    done = [preview(row) for row in islice((row for row in rows if row.outcome), ROWS)]
    if done:
        show(("ID", "INPUT", "OUTPUT"), done)
    if job.counts.done > len(done):
        say(f"... and {job.counts.done - len(done):,} more: `producer results {job.id} -o FILE` writes all.")


def follow_results(client: Client, job: Job, say: Callable[[str], None]) -> int:
    """Give the outcomes of a running job as its chunks are done, in input order; return its exit status at the end."""
    _write_lines(_lines(job, client.rows_as_they_come(job.id, say)), at_once=True)
    return exit_status(client.look(job.id))
