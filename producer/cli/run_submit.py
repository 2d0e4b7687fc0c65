"""Running a plan: submit, then (where the user waits) show progress and give the results."""

from collections.abc import Iterable

import click

from common.console import INTERRUPTED
from common.records import JobStatus, Record
from producer.cli.exit_status import exit_status
from producer.cli.failures import not_written_in_words
from producer.cli.progress import submit_progress
from producer.cli.show_results import give_results
from producer.cli.terminal import Say, print_json
from producer.cli.watch import follow_to_end
from producer.client import Client
from producer.job_handle import JobHandle
from producer.outputs.targets import OutputFile, Target, name_of
from producer.submit.duplicate_ids import watch_duplicates
from producer.submit.plan import Plan


def run(client: Client, plan: Plan, records: Iterable[Record], say: Say, *, as_json: bool) -> int:
    """Submit the records as the job of `plan` and do what its user asked for; return the exit status."""
    spec = plan.spec
    if plan.warning:
        say(f"Warning: {plan.warning}")
    if client.embedded:
        _say_others(client, say)
    else:
        warn_of_queue(client, spec.queue, say)
    try:
        with submit_progress() as progress:
            job, totals = client.submit_plan(plan, watch_duplicates(records, say), progress, say)
    except KeyboardInterrupt:
        if plan.idempotency_key is None:  # under a key, what is written is kept for the next submit
            say("Interrupted while submitting: there is no job.")
        raise
    if totals is not None and totals.bad:
        say(f"{totals.bad:,} of {totals.records:,} records cannot be read; they fail alone, the others go on.")
    if not plan.wait:
        say_accepted(job, as_json=as_json)
        return 0
    records_in_all = totals.records if totals else job.state.records or 0
    say(f"job {job.id}: {records_in_all:,} records for {spec.task}, model {spec.model or 'none'}")
    return see_through(client, job.id, plan.output, say, as_json=as_json)


def say_accepted(job: JobHandle, *, as_json: bool) -> None:
    """Print the job's id, the answer to who does not wait."""
    if as_json:
        print_json(job.refresh().as_dict())
    else:
        click.echo(job.id)


def see_through(client: Client, job_id: str, output: Target | None, say: Say, *, as_json: bool) -> int:
    """Wait for the end of a job and give its results; return the exit status.

    Args:
        client: of the job's queue.
        job_id: the job.
        output: a file or a directory for the results.
        say: told what is not the answer.
        as_json: whether results on a terminal are JSON lines too.
    """
    try:
        job, interrupted = follow_to_end(client, job_id, say)
    except KeyboardInterrupt:
        if isinstance(output, OutputFile):
            say(f"{output} is not written; once the job is finished: `producer results {job_id} -o {output}`.")
        raise
    if output is None or output == job.spec.output or job.status is JobStatus.COMPLETED:
        give_results(client, job, output, say, as_json=as_json, done_only=job.status is not JobStatus.COMPLETED)
    else:
        say(not_written_in_words(job, name_of(output)))
    return INTERRUPTED if interrupted else exit_status(job)


def warn_of_queue(client: Client, queue: str, say: Say, start: str = "workers start") -> None:
    """Say so if no worker takes jobs of a queue at present, or if Redis may lose them; `start` starts a worker."""
    for weakness in client.weaknesses():
        say(f"Warning: {weakness}")
    if not client.serves(queue):
        say(
            f"Warning: no live worker serves the queue {queue!r}; the job will wait for one (`{start}` on any machine)."
        )


def _say_others(client: Client, say: Say) -> None:
    """Name the jobs that the embedded worker runs besides: of other commands, or of one that was killed."""
    for job in client.unfinished():
        if job.status is not JobStatus.SUBMITTING:
            say(
                f"Job {job.id} ({job.counts.done:,} of {job.records:,} records done) is unfinished and shares the "
                f"worker; `producer cancel {job.id}` stops it."
            )
