"""Running a plan: submit, then (where the user waits) show progress and give the results."""

from collections.abc import Iterable

import click

from common.console import INTERRUPTED
from common.jobs import JobStatus
from common.records import Record
from producer.cli.exit_status import exit_status
from producer.cli.failures import describe_unwritten
from producer.cli.progress import submit_progress
from producer.cli.show_results import show_results
from producer.cli.terminal import Notify, print_json
from producer.cli.watch import watch_to_end
from producer.client import Client
from producer.job_handle import JobHandle
from producer.outputs.targets import OutputFile, Target, target_name
from producer.submit.duplicate_ids import warn_of_duplicate_ids
from producer.submit.plan import SubmitPlan


def run(client: Client, plan: SubmitPlan, records: Iterable[Record], notify: Notify, *, as_json: bool) -> int:
    """Submit the records as the job of `plan` and do what its user asked for; return the exit status."""
    spec = plan.spec
    if plan.warning:
        notify(f"Warning: {plan.warning}")
    if client.embedded:
        _say_others(client, notify)
    else:
        warn_if_unserved(client, spec.queue, notify)
    try:
        with submit_progress() as progress:
            job, totals = client.submit_plan(plan, warn_of_duplicate_ids(records, notify), progress, notify)
    except KeyboardInterrupt:
        if plan.idempotency_key is None:  # under a key, what is written is kept for the next submit
            notify("Interrupted while submitting: there is no job.")
        raise
    if totals is not None and totals.bad:
        notify(f"{totals.bad:,} of {totals.records:,} records cannot be read; they fail alone, the others go on.")
    if not plan.wait:
        print_accepted(job, as_json=as_json)
        return 0
    records_in_all = totals.records if totals else job.state.records or 0
    notify(f"job {job.id}: {records_in_all:,} records for {spec.task}, model {spec.model or 'none'}")
    return wait_and_show(client, job, plan.output, notify, as_json=as_json)


def print_accepted(job: JobHandle, *, as_json: bool) -> None:
    """Print the job's id, the answer to who does not wait."""
    if as_json:
        print_json(job.refresh().as_dict())
    else:
        click.echo(job.id)


def wait_and_show(client: Client, handle: JobHandle, output: Target | None, notify: Notify, *, as_json: bool) -> int:
    """Wait for the end of a job and give its results; return the exit status.

    Args:
        client: of the job's queue.
        handle: the job.
        output: a file or a directory for the results.
        say: told what is not the answer.
        as_json: whether results on a terminal are JSON lines too.
    """
    try:
        job, interrupted = watch_to_end(client, handle, notify)
    except KeyboardInterrupt:
        if isinstance(output, OutputFile):
            notify(f"{output} is not written; once the job is finished: `producer results {handle.id} -o {output}`.")
        raise
    if output is None or output == job.spec.output or job.status is JobStatus.COMPLETED:
        show_results(handle, output, notify, as_json=as_json, done_only=job.status is not JobStatus.COMPLETED)
    else:
        notify(describe_unwritten(job, target_name(output)))
    return INTERRUPTED if interrupted else exit_status(job)


def warn_if_unserved(client: Client, queue: str, notify: Notify, start: str = "workers start") -> None:
    """Say so if no worker takes jobs of a queue at present, or if Redis may lose them; `start` starts a worker."""
    for weakness in client.connection.durability_warnings():
        notify(f"Warning: {weakness}")
    if not client.connection.serves(queue):
        notify(
            f"Warning: no live worker serves the queue {queue!r}; the job will wait for one (`{start}` on any machine)."
        )


def _say_others(client: Client, notify: Notify) -> None:
    """Name the jobs that the embedded worker runs besides: of other commands, or of one that was killed."""
    for job in client.connection.unfinished():
        if job.status is not JobStatus.SUBMITTING:
            notify(
                f"Job {job.id} ({job.counts.done:,} of {job.records:,} records done) is unfinished and shares the "
                f"worker; `producer cancel {job.id}` stops it."
            )
