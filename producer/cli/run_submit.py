"""Running a submit plan: submits the job and, if the user waits for it, shows progress and results."""

import sys
from collections.abc import Iterable

import click

from common.console import INTERRUPTED
from common.jobs import JobStatus
from common.queue.heartbeats import serving
from common.records import Record
from producer.cli.progress import submit_progress
from producer.cli.show_results import show_results
from producer.cli.terminal import Notify, exit_status, print_json
from producer.cli.watch import describe_unwritten, watch_submitted_job
from producer.client import Client
from producer.dtype_tip import dtype_tip
from producer.job_handle import JobHandle
from producer.outputs.hub_target import HubOutput
from producer.outputs.targets import OutputFile, Target, target_name
from producer.submit.duplicate_ids import warn_of_duplicate_ids
from producer.submit.plan import SubmitPlan


def run_submit(client: Client, plan: SubmitPlan, records: Iterable[Record], notify: Notify, *, as_json: bool) -> int:
    """Submit the records as the job of `plan`, and wait for it if the plan says so; return the exit status."""
    spec = plan.spec
    if plan.warning:
        notify(f"Warning: {plan.warning}")
    if client.embedded:
        _list_unfinished_jobs(client, notify)
    else:
        warn_if_unserved(client, spec.queue, notify)
    if isinstance(plan.output, HubOutput):
        from producer.hub.checks import prepare_hub_output

        prepare_hub_output(plan.output, plan.settings, client.job_of_key(plan.idempotency_key))
    try:
        with submit_progress() as progress:
            job, totals = client.submit_plan(plan, warn_of_duplicate_ids(records, notify), progress, notify)
    except KeyboardInterrupt:
        if plan.idempotency_key is None:  # under a key, there may be the job of another command
            notify("Interrupted while submitting: no job was created.")
        raise
    if totals is not None and sys.stderr.isatty():
        _give_tip(client, job, totals.records, notify)
    if totals is not None and totals.bad:
        notify(f"{totals.bad:,} of {totals.records:,} records are invalid and fail; the others are processed.")
    if not plan.wait:
        print_accepted(job, as_json=as_json)
        return accepted_status(job, notify)
    notify(f"job {job.id}: {job.state.records or 0:,} records for {spec.task}, model {spec.model or 'none'}")
    return wait_and_show(client, job, plan.output, notify, as_json=as_json)


def _give_tip(client: Client, job: JobHandle, records: int, notify: Notify) -> None:
    workers = serving(client.workers(), job.state.spec.queue)
    if tip := dtype_tip(job.state.spec, records, workers):
        notify(tip)


def print_accepted(job: JobHandle, *, as_json: bool) -> None:
    """Print the id of a job that is not waited for, or the job as JSON."""
    if as_json:
        print_json(job.refresh().as_dict())
    else:
        click.echo(job.id)


def accepted_status(job: JobHandle, notify: Notify) -> int:
    """Return the exit status of a command that does not wait for its job: 1 if that was cancelled at once, and why."""
    state = job.state
    if state.status is not JobStatus.CANCELLED or state.failure is None:
        return 0
    notify(f"Job {job.id} was cancelled: {state.failure.message.rstrip('.')}.")
    return 1


def wait_and_show(client: Client, handle: JobHandle, output: Target | None, notify: Notify, *, as_json: bool) -> int:
    """Wait until a job is finished, and print or save its results; return the exit status.

    Args:
        client: of the job's queue.
        handle: the job.
        output: a file, a directory or a dataset for the results; None for stdout.
        notify: called with messages.
        as_json: print results as JSON lines also on a terminal.
    """
    if isinstance(output, HubOutput):
        from producer.cli.hub_upload import upload_job

        return upload_job(client, handle, output, notify)
    try:
        job, interrupted = watch_submitted_job(client, handle, notify)
    except KeyboardInterrupt:
        if isinstance(output, OutputFile):
            notify(f"{output} was not written. Once the job is finished: `producer results {handle.id} -o {output}`.")
        raise
    if output is None or output == job.spec.output or job.status is JobStatus.COMPLETED:
        show_results(handle, output, notify, as_json=as_json, done_only=job.status is not JobStatus.COMPLETED)
    else:
        notify(describe_unwritten(job, target_name(output)))
    return INTERRUPTED if interrupted else exit_status(job)


def warn_if_unserved(client: Client, queue: str, notify: Notify, start: str = "workers start") -> None:
    """Warn if Redis may lose jobs, or if no live worker serves a queue; `start` is the command that starts one."""
    for warning in client.connection.durability_warnings():
        notify(f"Warning: {warning}")
    if not client.connection.serves(queue):
        notify(
            f"Warning: no live worker serves the queue {queue!r}; the job will wait until one is started "
            f"(`{start}` on any machine)."
        )


def _list_unfinished_jobs(client: Client, notify: Notify) -> None:
    """Report jobs that share the embedded worker: of other commands, or of one that was killed."""
    for job in client.connection.unfinished():
        if job.status is not JobStatus.SUBMITTING:
            notify(
                f"Job {job.id} ({job.counts.done:,} of {job.records:,} records done) is unfinished and shares the "
                f"worker; `producer cancel {job.id}` stops it."
            )
