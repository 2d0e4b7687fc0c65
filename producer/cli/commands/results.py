"""`producer results` and `producer retry`: read results and run failed records again."""

import sys
from typing import Any

import click

from common.errors import UsageError
from common.jobs import JobStatus
from producer.cli.options import (
    job_argument,
    json_lines_option,
    keep_alive_option,
    output_options,
)
from producer.cli.session import open_client
from producer.cli.terminal import notify


@click.command()
@job_argument
@output_options
@click.option("--follow", is_flag=True, help="Print the results of a running job as they become available.")
@click.option("--failed", is_flag=True, help="Show only failed records.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
def results(job: str, follow: bool, failed: bool, as_json: bool, **output: Any) -> None:
    """Print or save a job's results in input order, one per record.

    Results are a table on a terminal, and JSON lines in a pipe. Records that have not run (yet) have the error code
    `not_run`. With -o hf:ORG/NAME, this waits for a running job, and continues an interrupted upload.
    """
    from producer.cli.show_results import show_failures, show_results, stream_results
    from producer.hub.checks import check_hub_output
    from producer.outputs.hub_target import HubOutput
    from producer.outputs.targets import open_target

    if follow and (failed or output["output"] is not None):
        raise UsageError(f"--follow prints all results; it cannot be combined with {'--failed' if failed else '-o'}.")
    with open_client(with_worker=follow) as client:
        handle = client.job(job)
        found = handle.state
        target = open_target(found.spec, **output)
        if isinstance(target, HubOutput):
            from producer.cli.hub_upload import upload_job

            if failed:
                raise UsageError("--failed writes a single file: name it with -o FILE.")
            check_hub_output(target, client.connection.settings, begun=True)
            sys.exit(upload_job(client, handle, target, notify))
        if not found.status.finished:
            if follow:
                sys.exit(stream_results(handle))
            notify(f"Job {found.id} is {found.status}: {found.counts.done:,} of {found.records or 0:,} records done.")
        show = show_failures if failed else show_results
        show(handle, target, notify, as_json=as_json)


@click.command()
@job_argument
@output_options
@click.option("--wait", is_flag=True, help="Wait for the job and print the results.")
@keep_alive_option
@json_lines_option
def retry(job: str, wait: bool, keep_alive: str | None, as_json: bool, **output: Any) -> None:
    """Retry failed records, and chunks that never finished or whose results are lost.

    Other results are kept; the result of a record that runs again is replaced. Prints the job id; with --wait or -o,
    or if no Redis is configured, waits and prints the results.
    """
    from producer.cli.run_submit import print_accepted, wait_and_show
    from producer.hub.checks import check_hub_output, prepare_hub_output
    from producer.outputs.hub_target import HubOutput
    from producer.outputs.targets import open_target

    with open_client(replace_outdated=True, keep_alive=keep_alive) as client:
        handle = client.job(job)
        job, spec = handle.id, handle.state.spec
        target = open_target(spec, **output)
        if isinstance(target, HubOutput):
            check_hub_output(target, client.connection.settings, begun=True)
            prepare_hub_output(target, client.connection.settings, job)
        if not handle.retry() and handle.state.status is JobStatus.COMPLETED:
            notify(f"Job {job}: all records succeeded; there is nothing to retry.")
        if cancelled := handle.cancelled_waiters():
            ids = ", ".join(found.id for found in cancelled)
            notify(f"Jobs that waited for it stay cancelled; `producer retry` runs them after it, in this order: {ids}")
        if wait or target or client.embedded:
            sys.exit(wait_and_show(client, handle, target or spec.output, notify, as_json=as_json))
        print_accepted(handle, as_json=as_json)
