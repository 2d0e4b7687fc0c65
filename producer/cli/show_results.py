"""Giving results: into a file, as JSON lines into a pipe, or as a table on a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from common.errors import ResultsLost, UsageError
from common.jobs import Job, JobStatus
from producer.cli.exit_status import exit_status
from producer.cli.tables import RESULT_COLUMNS, show
from producer.job_handle import JobHandle
from producer.openai import response_line
from producer.outputs import ResultRow, preview, to_line
from producer.outputs.targets import OutputFile, Target
from producer.save_results import write_file

#: Rows of the table on a terminal; more would push the first ones out of sight.
MAX_TABLE_ROWS = 100


def show_results(
    handle: JobHandle,
    output: Target | None,
    notify: Callable[[str], None],
    *,
    as_json: bool = False,
    done_only: bool = False,
) -> None:
    """Give the outcomes of `job` where the user wants them.

    Args:
        handle: a job, finished or not.
        output: a file or a directory; None: stdout.
        say: told what is not the answer.
        as_json: whether stdout gets JSON lines on a terminal too.
        done_only: whether stdout gets no line for records that were not run.

    Raises:
        UsageError: the file cannot be written.
    """
    job = handle.state
    if not job.records:
        return
    rows = handle.rows()
    if output:
        notify(save_results(handle, output))
    elif sys.stdout.isatty() and not as_json and not job.spec.format:
        _show_table(job, rows, notify)
    else:
        _write_lines(_lines(job, rows, done_only=done_only))


def save_results(handle: JobHandle, target: Target) -> str:
    """Write every record with its outcome to a file or a directory of parts; return what was done, in words.

    Raises:
        UsageError: The file cannot be written.
        ResultsLost: Some are missing; no file was written, and no directory is marked as complete.
        StorageError: The directory cannot be written.
    """
    job = handle.state
    if isinstance(target, OutputFile):
        written, not_run = handle.write_file(target), (job.records or 0) - job.counts.done
        return f"wrote {written:,} records to {target}" + (
            f"; {not_run:,} of them were not run (`not_run`)" if not_run else ""
        )
    if target != job.spec.output:
        written = handle.write_parts(target)
        return f"wrote {written:,} records to {target.address}, a part for each chunk ({job.chunks:,})"
    if lost := handle.lost_chunks():  # workers have written the parts
        raise ResultsLost(
            f"{len(lost):,} of {job.chunks:,} parts are no longer in {target.address}; `producer retry {job.id}` "
            "runs their chunks again."
        )
    done = "all" if job.status is JobStatus.COMPLETED else f"{job.counts.done:,} of"
    return f"{done} {job.records:,} records are in {target.address}, a part for each chunk"


def show_failures(
    handle: JobHandle, output: Target | None, notify: Callable[[str], None], *, as_json: bool = False
) -> None:
    """Give the records that failed, as `show_results`.

    Raises:
        UsageError: the file cannot be written, or is a directory; or the job is of a batch file.
    """
    job = handle.state
    if job.spec.format:
        raise UsageError("--failed is for records: the responses to a batch file hold its failures among the others.")
    rows = handle.failures()
    if isinstance(output, OutputFile):
        notify(f"wrote {write_file(job, rows, output):,} failed records to {output}")
    elif output is not None:
        raise UsageError("--failed writes one file: name it with -o FILE.")
    elif sys.stdout.isatty() and not as_json:
        found = [preview(row) for row in islice(rows, MAX_TABLE_ROWS)]
        show(RESULT_COLUMNS, found)
        if job.counts.failed > len(found):
            notify(f"... and {job.counts.failed - len(found):,} more: `producer results {job.id} --failed -o FILE`.")
    else:
        _write_lines(_lines(job, rows))


def _lines(job: Job, rows: Iterable[ResultRow], *, done_only: bool = False) -> Iterator[str]:
    for number, row in enumerate(rows):
        if row.outcome or not done_only:
            yield response_line(job.spec, number, row) if job.spec.format else to_line(row)


def _write_lines(lines: Iterable[str], *, at_once: bool = False) -> None:
    for line in lines:
        sys.stdout.buffer.write(f"{line}\n".encode())  # JSON is UTF-8, whatever the locale says
        if at_once:
            sys.stdout.flush()


def _show_table(job: Job, rows: Iterator[ResultRow], notify: Callable[[str], None]) -> None:
    done: list[tuple[str, str, str]] = []
    try:
        # Of a job that was stopped, what was not run would be most of the table.
        for row in islice((row for row in rows if row.outcome), MAX_TABLE_ROWS):
            done.append(preview(row))
    finally:  # results that are lost are told at the end of those that are there
        if done:
            show(RESULT_COLUMNS, done)
    if job.counts.done > len(done):
        notify(f"... and {job.counts.done - len(done):,} more: `producer results {job.id} -o FILE` writes all.")


def stream_results(handle: JobHandle) -> int:
    """Give the outcomes of a running job as its chunks are done, in input order; return its exit status at the end."""
    _write_lines(_lines(handle.state, handle.stream()), at_once=True)
    return exit_status(handle.state)
