"""From a job's outcomes to a file, or to a directory of parts."""

from collections.abc import Callable, Iterable
from pathlib import Path

from common.errors import ResultsLost, UsageError
from common.jobs import Job, JobStatus, Output
from common.results import ResultRow
from common.tasks import find_task
from producer.openai import BatchWriter
from producer.outputs import open_output
from producer.outputs.targets import OutputFile, Target
from producer.queue_connection import QueueConnection


def save_results(connection: QueueConnection, job: Job, target: Target, notify: Callable[[str], None]) -> str:
    """Write every record with its outcome where the user wants it; return what was done, in words.

    Raises:
        UsageError: it cannot be written.
        ResultsLost: some are missing; no file was written, and no directory of parts is said to be whole.
        StorageError: a directory of parts cannot be written.
    """
    if isinstance(target, OutputFile):
        written = write_rows(connection, job, target, notify)
        return f"wrote {written:,} records to {target}{_describe_not_run(job)}"
    if target == job.spec.output:  # workers have written it
        _check_parts(connection, job, target)
        done = "all" if job.status is JobStatus.COMPLETED else f"{job.counts.done:,} of"
        return f"{done} {job.records:,} records are in {target.address}, a part for each chunk"
    written = write_parts(connection, job, target, notify)
    return f"wrote {written:,} records to {target.address}, a part for each chunk ({job.chunks:,})"


def _describe_not_run(job: Job) -> str:
    not_run = (job.records or 0) - job.counts.done
    return f"; {not_run:,} of them were not run (`not_run`)" if not_run else ""


def write_rows(connection: QueueConnection, job: Job, file: OutputFile, notify: Callable[[str], None]) -> int:
    """Write every record with its outcome, the file whole or not at all; return how many there are.

    Raises:
        UsageError: the file cannot be written, or is there and the job is not completed.
        ResultsLost: some are missing; the file is as it was.
    """
    path = file.path
    _check_may_replace(path, job)
    if job.spec.format:
        with BatchWriter(path, job.spec) as batch:
            return batch.write_all(connection.rows(job, notify))
    kind = connection.output_type(job, notify) if path.suffix.lower() == ".parquet" else None
    with open_output(path, find_task(job.spec.task), output_type=kind, csv_safe=file.csv_safe) as writer:
        return writer.write_all(connection.rows(job, notify, arrays=True))


def write_selected_rows(file: OutputFile, job: Job, rows: Iterable[ResultRow]) -> int:
    """Write some rows of a job to a file, whole or not at all; return how many.

    Raises:
        UsageError: the file cannot be written, or exists and the job is not completed.
    """
    _check_may_replace(file.path, job)
    with open_output(file.path, find_task(job.spec.task), csv_safe=file.csv_safe) as writer:
        return writer.write_all(rows)


def _check_may_replace(path: Path, job: Job) -> None:
    """Check that the results of a job may go to this file: only those of a completed job replace one.

    Raises:
        UsageError: the file exists, and the job is not completed.
    """
    if job.status is not JobStatus.COMPLETED and path.exists():
        raise UsageError(
            f"{path} exists, and only the results of a completed job replace a file; job {job.id} is {job.status}. "
            "Name another file, or remove this one."
        )


def write_parts(connection: QueueConnection, job: Job, output: Output, notify: Callable[[str], None]) -> int:
    """Write a part for each chunk, as workers do where they reach the directory; of a completed job, that it is whole.

    Returns:
        How many records were written.

    Raises:
        StorageError: the directory cannot be written.
        ResultsLost: some are missing; it is not said to be whole.
    """
    from common.payloads.output_committer import OutputCommitter

    parts = OutputCommitter(job.id, output)
    kind = connection.output_type(job, notify)
    failed, written = {}, 0
    for chunk, rows in enumerate(connection.chunks(job, notify, arrays=True)):
        parts.write(chunk, rows, kind)
        failed[chunk] = sum(row.error is not None for row in rows)
        written += len(rows)
    if job.status is JobStatus.COMPLETED:
        parts.close(job, failed)
    return written


def _check_parts(connection: QueueConnection, job: Job, output: Output) -> None:
    """Check that the parts which workers have written are there."""
    lost = connection.lost_chunks(job)
    if lost:
        raise ResultsLost(
            f"{len(lost):,} of {job.chunks:,} parts are no longer in {output.address}; `producer retry {job.id}` "
            "runs their chunks again."
        )
