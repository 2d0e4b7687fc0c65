"""From a job's outcomes to a file."""

from collections.abc import Callable
from pathlib import Path

from common.jobs import Job
from common.tasks import find_task
from producer.connection import Connection
from producer.openai import BatchWriter
from producer.outputs import open_output


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
        writer.write_all(connection.rows(job, on_trouble))
