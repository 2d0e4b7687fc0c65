"""`producer results` and `retry`."""

import sys

import click

from common.errors import UsageError
from common.jobs import JobStatus
from producer.cli.options import (
    csv_safe_option,
    job_argument,
    json_lines_option,
    keep_alive_option,
    output_option,
    part_format_option,
)
from producer.cli.session import open_client
from producer.cli.terminal import notify


@click.command()
@job_argument
@output_option
@part_format_option
@csv_safe_option
@click.option("--follow", is_flag=True, help="Give the results of a running job as they come, until it ends.")
@click.option("--failed", is_flag=True, help="Give only the records that failed.")
@json_lines_option
def results(
    job: str,
    output: str | None,
    output_format: str | None,
    csv_safe: bool,
    follow: bool,
    failed: bool,
    as_json: bool,
) -> None:
    """Print or save a job's results, in input order, one for every record.

    On a terminal they are a table, in a pipe JSON lines. Records that were not run (yet) have the error code
    `not_run`.
    """
    from producer.cli.show_results import show_failures, show_results, stream_results
    from producer.outputs.targets import open_target

    if follow and output is not None:
        raise UsageError("--follow prints results as they come; a file is written whole, at the end: leave out one.")
    if follow and failed:
        raise UsageError("--follow gives all results as they come, --failed those of failed records: leave out one.")
    with open_client(working=follow) as client:
        handle = client.job(job)
        found = handle.state
        target = open_target(output, output_format, found.spec, csv_safe=csv_safe)
        if follow and not found.status.finished:
            sys.exit(stream_results(handle))
        if not found.status.finished:
            notify(
                f"Job {found.id} is {found.status}: {found.counts.done:,} of {found.records or 0:,} records are done."
            )
        if failed:
            show_failures(handle, target, notify, as_json=as_json)
            return
        show_results(handle, target, notify, as_json=as_json)


@click.command()
@job_argument
@output_option
@part_format_option
@csv_safe_option
@click.option("--wait", is_flag=True, help="Wait for the end and print the results.")
@keep_alive_option
@json_lines_option
def retry(
    job: str,
    output: str | None,
    output_format: str | None,
    csv_safe: bool,
    wait: bool,
    keep_alive: str | None,
    as_json: bool,
) -> None:
    """Run again only the records that failed, and chunks that never ended or whose results are lost.

    The results of the others stay; that of a record run again is replaced. Prints the job's id, or waits and gives
    the results with --wait, with -o, or where no queue is configured.
    """
    from producer.cli.run_submit import print_accepted, wait_and_show
    from producer.outputs.targets import open_target

    with open_client(replace_outdated=True, keep_alive=keep_alive) as client:
        handle = client.job(job)
        job, spec = handle.id, handle.state.spec
        target = open_target(output, output_format, spec, csv_safe=csv_safe)
        if not handle.retry() and handle.state.status is JobStatus.COMPLETED:
            notify(f"Job {job}: every record has succeeded; there is nothing to run again.")
        if wait or target or client.embedded:
            sys.exit(wait_and_show(client, handle, target or spec.output, notify, as_json=as_json))
        print_accepted(handle, as_json=as_json)
