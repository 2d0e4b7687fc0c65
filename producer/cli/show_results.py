"""Results at the terminal: into a file, as JSON lines into a pipe, or as a table."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from common.errors import ResultsLost, UsageError
from common.jobs import Job, JobStatus
from common.results import ResultLayout, ResultRow
from producer.cli.terminal import exit_status
from producer.job_handle import JobHandle
from producer.openai import response_line
from producer.outputs import preview
from producer.outputs.targets import FileTarget, OutputFile

#: Rows of the table on a terminal; more would push the first ones out of sight.
MAX_TABLE_ROWS = 100


def show_results(
    handle: JobHandle,
    output: FileTarget | None,
    notify: Callable[[str], None],
    *,
    as_json: bool = False,
    done_only: bool = False,
) -> None:
    """Print or save the results of a job.

    Args:
        handle: a job, finished or not.
        output: a file or a directory; None for stdout.
        notify: called with messages.
        as_json: print JSON lines also on a terminal.
        done_only: print no line for records that have not run.

    Raises:
        UsageError: the file cannot be written.
    """
    job = handle.state
    if not job.records:
        return
    if output:
        notify(save_results(handle, output))
        return
    rows = handle.rows()
    if sys.stdout.isatty() and not as_json and not job.spec.format:
        _show_table(job, rows, notify)
    else:
        _print_lines(_lines(job, rows, done_only=done_only))


def save_results(handle: JobHandle, target: FileTarget) -> str:
    """Write all results to a file or a directory; return a message about it.

    Raises:
        UsageError: the file cannot be written.
        ResultsLost: some are missing; no file was written, and no directory is marked as complete.
        StorageError: the directory cannot be written.
    """
    job = handle.state
    if isinstance(target, OutputFile):
        written, not_run = handle.write_file(target), (job.records or 0) - job.counts.done
        return f"wrote {written:,} records to {target}" + (f"; {not_run:,} of them did not run" if not_run else "")
    if target != job.spec.output:
        written = handle.write_parts(target)
        return f"wrote {written:,} records to {target.location}, one file per chunk ({job.chunks:,})"
    if lost := handle.lost_chunks():  # workers have written the files
        raise ResultsLost(
            f"{len(lost):,} of {job.chunks:,} files are no longer in {target.location}; `producer retry {job.id}` "
            "runs their chunks again."
        )
    done = "all" if job.status is JobStatus.COMPLETED else f"{job.counts.done:,} of"
    return f"{done} {job.records:,} records are in {target.location}, one file per chunk"


def show_failures(
    handle: JobHandle, output: FileTarget | None, notify: Callable[[str], None], *, as_json: bool = False
) -> None:
    """Print or save the failed records of a job.

    Raises:
        UsageError: the file cannot be written, or is a directory; or the job is a batch file's.
    """
    job = handle.state
    if job.spec.format:
        raise UsageError("--failed is not available for batch files, whose responses contain the failures.")
    rows = handle.failed_rows()
    if isinstance(output, OutputFile):
        notify(f"wrote {handle.write_file(output, handle.failed_rows):,} failed records to {output}")
    elif output is not None:
        raise UsageError("--failed writes a single file: name it with -o FILE.")
    elif sys.stdout.isatty() and not as_json:
        shown = [preview(row) for row in islice(rows, MAX_TABLE_ROWS)]
        _print_table(shown)
        if job.counts.failed > len(shown):
            notify(f"... and {job.counts.failed - len(shown):,} more: `producer results {job.id} --failed -o FILE`.")
    else:
        _print_lines(_lines(job, rows))


def stream_results(handle: JobHandle) -> int:
    """Print the results of a running job in input order as its chunks finish; return its exit status at the end."""
    _print_lines(_lines(handle.state, handle.stream()), flush=True)
    return exit_status(handle.state)


def _lines(job: Job, rows: Iterable[ResultRow], *, done_only: bool = False) -> Iterator[str]:
    layout = ResultLayout.of(job.spec)
    for number, row in enumerate(rows):
        if row.outcome or not done_only:
            yield response_line(job.spec, number, row) if job.spec.format else layout.to_line(row)


def _print_lines(lines: Iterable[str], *, flush: bool = False) -> None:
    for line in lines:
        sys.stdout.buffer.write(f"{line}\n".encode())  # JSON is UTF-8, regardless of the locale
        if flush:
            sys.stdout.flush()


def _show_table(job: Job, rows: Iterator[ResultRow], notify: Callable[[str], None]) -> None:
    shown: list[tuple[str, str, str]] = []
    try:
        # Most of the table would be records that did not run if the job was stopped.
        for row in islice((row for row in rows if row.outcome), MAX_TABLE_ROWS):
            shown.append(preview(row))
    finally:  # lost results are reported after those that are there
        if shown:
            _print_table(shown)
    if job.counts.done > len(shown):
        notify(f"... and {job.counts.done - len(shown):,} more: `producer results {job.id} -o FILE` writes all.")


def _print_table(shown: Sequence[tuple[str, str, str]]) -> None:
    from producer.cli.tables import RESULT_COLUMNS, show  # they load rich, which files and pipes do not need

    show(RESULT_COLUMNS, shown)
