"""From a job's outcomes to a file, or to a directory of parts."""

from collections.abc import Callable, Iterable
from pathlib import Path

from common.jobs import Job
from common.rows import Row
from common.tasks import find_task
from common.values import JobStatus, Output
from producer.connection import Connection
from producer.openai import BatchWriter
from producer.outputs import open_output
from producer.outputs.targets import Target


def save(connection: Connection, job: Job, target: Target, on_trouble: Callable[[str], None]) -> str:
    """Write every record with its outcome where the user wants it; return what was done, in words.

    Raises:
        UsageError: it cannot be written.
        StorageError: a directory of parts cannot be written.
    """
    if isinstance(target, Path):
        write_rows(connection, job, target, on_trouble)
        return f"wrote {job.records:,} records to {target}"
    if target == job.spec.output:  # workers have written it
        done = "all" if job.status is JobStatus.COMPLETED else f"{job.counts.done:,} of"
        return f"{done} {job.records:,} records are in {target.address}, a part for each chunk"
    write_parts(connection, job, target, on_trouble)
    return f"wrote {job.records:,} records to {target.address}, a part for each chunk ({job.chunks:,})"


def write_rows(connection: Connection, job: Job, path: Path, on_trouble: Callable[[str], None]) -> None:
    """Write every record with its outcome, the file whole or not at all.

    Raises:
        UsageError: the file cannot be written.
    """
    if job.spec.format:
        with BatchWriter(path, job.spec) as batch:
            batch.write_all(connection.rows(job, on_trouble))
        return
    kind = connection.output_type(job, on_trouble) if path.suffix.lower() == ".parquet" else None
    with open_output(path, find_task(job.spec.task), output_type=kind) as writer:
        writer.write_all(connection.rows(job, on_trouble, arrays=True))


def write_some(path: Path, job: Job, rows: Iterable[Row]) -> int:
    """Write some rows of a job to a file, whole or not at all; return how many.

    Raises:
        UsageError: the file cannot be written.
    """
    count = 0
    with open_output(path, find_task(job.spec.task)) as writer:
        for row in rows:
            writer.write(row)
            count += 1
    return count


def write_parts(connection: Connection, job: Job, output: Output, on_trouble: Callable[[str], None]) -> None:
    """Write a part for each chunk, as workers do where they reach the directory; of a completed job, that it is whole.

    Raises:
        StorageError: the directory cannot be written.
    """
    from common.payloads.output_parts import OutputParts

    parts = OutputParts(job.id, output)
    kind = connection.output_type(job, on_trouble)
    failed = {}
    for chunk, rows in enumerate(connection.chunks(job, on_trouble, arrays=True)):
        parts.write(chunk, rows, kind)
        failed[chunk] = sum(row.error is not None for row in rows)
    if job.status is JobStatus.COMPLETED:
        parts.close(job, failed)
