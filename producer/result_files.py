"""Result files: a job's rows are written to one file, or to a directory with a part for each chunk."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.jobs import Job, JobStatus, Output
from common.own_columns import ColumnMisfit, widen
from common.results import ResultRow
from producer.openai import BatchWriter
from producer.outputs import open_output
from producer.outputs.targets import OutputFile


def write_file(job: Job, rows: Callable[[], Iterable[ResultRow]], file: OutputFile, output_type: Any = None) -> int:
    """Write rows of a job to a file, complete or not at all; return their number.

    Args:
        job: Only the results of a completed one replace an existing file.
        rows: Reads all of its rows, or the failed ones; called again if a column turns out to need a wider type.
        file: Its extension says the format; the rows of an OpenAI batch become responses.
        output_type: Arrow type of the outputs, for CSV and Parquet.

    Raises:
        UsageError: The file cannot be written, or exists and the job is not completed.
        ResultsLost: `rows` raised it; the file is unchanged.
    """
    _check_may_replace(file.path, job)
    if job.spec.format:
        with BatchWriter(file.path, job.spec) as batch:
            return batch.write_all(rows())
    columns = job.spec.columns
    while True:
        writer = open_output(
            file.path,
            job.spec,
            columns,
            output_type=output_type,
            csv_safe=file.csv_safe,
            media_files=file.media_files,
        )
        try:
            with writer:
                return writer.write_all(rows())
        except ColumnMisfit as misfit:
            columns = widen(columns, misfit)


def _check_may_replace(path: Path, job: Job) -> None:
    if job.status is not JobStatus.COMPLETED and path.exists():
        raise UsageError(
            f"{path} exists, and only the results of a completed job replace a file; job {job.id} is {job.status}. "
            "Name another file, or remove this one."
        )


def write_parts(job: Job, chunks: Iterable[list[ResultRow]], output: Output, output_type: Any) -> int:
    """Write a part for each chunk, as workers do if they reach the directory; return the number of records.

    The directory of a completed job is marked as complete at the end.

    Raises:
        StorageError: The directory cannot be written.
        ResultsLost: `chunks` raised it; the directory is not marked as complete.
    """
    from common.payloads.output_committer import OutputCommitter

    committer = OutputCommitter(job.spec, output)
    failed, written = {}, 0
    for chunk, rows in enumerate(chunks):
        committer.write_part(chunk, rows, output_type)
        failed[chunk] = sum(row.error is not None for row in rows)
        written += len(rows)
    if job.status is JobStatus.COMPLETED:
        committer.commit_job(job, failed)
    return written
