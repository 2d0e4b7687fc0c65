"""`producer jobs`, `status`, `logs`, `cancel` and `delete`: show and manage jobs."""

import sys
from typing import TYPE_CHECKING, Any

import click

from common.display_text import replace_control_chars
from common.errors import UsageError
from common.jobs import JobStatus
from producer.cli.options import job_argument, jobs_argument, json_option, label_option, status_option
from producer.cli.session import open_client
from producer.cli.terminal import notify, print_json

if TYPE_CHECKING:
    from common.jobs import Job
    from producer.client import Client
    from producer.job_handle import JobHandle


@click.command()
@status_option
@click.option("--name", metavar="TEXT", help="Only jobs with this name; * matches any text.")
@label_option("Only jobs with this label; if repeated, all must match.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Maximum number of jobs.")
@click.option("--watch", is_flag=True, help="Refresh the list until Ctrl-C; needs a terminal.")
@json_option
def jobs(status: str | None, name: str | None, labels: tuple[str, ...], limit: int, watch: bool, as_json: bool) -> None:
    """List jobs, newest first."""
    from producer.cli.tables import show_jobs, watch_jobs
    from producer.job_filter import parse_labels

    filters = {"status": status, "name": name, "labels": parse_labels(labels), "limit": limit}
    if watch and (as_json or not sys.stdout.isatty()):
        raise UsageError("--watch needs a terminal; scripts can call `producer jobs --json` repeatedly.")
    with open_client() as client:
        if watch:
            watch_jobs(lambda: _find(client, **filters))
        found = _find(client, **filters)
        if as_json:
            print_json([job.as_dict() for job in found])
            return
        show_jobs(found)
        if not found and not client.jobs(limit=1):
            notify("There are no jobs yet. `producer submit --task TASK FILE` creates one.")


def _find(client: "Client", **filters: Any) -> "list[Job]":
    return [job.state for job in client.jobs(**filters)]


@click.command()
@job_argument
@json_option
def status(job: str, as_json: bool) -> None:
    """Show a job's status, counts, device and error."""
    from producer.predecessors import describe_wait

    with open_client() as client:
        found = client.job(job)
        refusals, waits = found.refusals(), describe_wait(found.predecessors())
    if as_json:
        print_json(found.state.as_dict() | {"refusals": refusals})
        return
    from producer.cli.tables import show_job

    show_job(found.state, refusals, waits)


@click.command()
@job_argument
def logs(job: str) -> None:
    """Show what the embedded worker logged about a job, while its log is kept.

    Workers on your own Redis log where they run.
    """
    with open_client() as client:
        for entry in client.logs(job):
            click.echo(replace_control_chars(entry))


@click.command()
@jobs_argument
@json_option
def cancel(jobs: tuple[str, ...], name: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs. Finished results are kept; `producer results JOB` shows them.

    Jobs that wait for them are cancelled too, unless they were submitted with --after-any.

    Give job ids, or select unfinished jobs with --name and --label.
    """
    from producer.cli.job_arguments import for_each_job, notify_cancelled, select_job_ids
    from producer.job_filter import JobFilter, parse_labels

    job_filter = JobFilter(name=name, labels=parse_labels(labels))
    cancelled: list[Job] = []

    def cancel_one(job: "JobHandle") -> None:
        finished = job.state.status.finished
        if finished and not jobs:
            return
        waiting = job.waiting()
        job.cancel()
        cancelled.append(job.refresh())
        if not as_json:
            notify(f"job {job.id}: {'was already ' if finished else ''}{job.state.status}")
            notify_cancelled(waiting, notify)

    with open_client() as client:
        ids = select_job_ids(client, jobs, job_filter)  # a usage error comes before any output
        try:
            for_each_job(client, ids, JobFilter(), cancel_one, notify)
        finally:
            if as_json:
                print_json([job.as_dict() for job in cancelled])


@click.command()
@jobs_argument
@status_option
@click.option("--older-than", metavar="SPAN", help="Select jobs submitted longer ago than this, such as 12h or 7d.")
@click.option("--force", is_flag=True, help="Also delete unfinished jobs; they are stopped and their results are lost.")
def delete(
    jobs: tuple[str, ...],
    name: str | None,
    labels: tuple[str, ...],
    status: str | None,
    older_than: str | None,
    force: bool,
) -> None:
    """Delete finished jobs with their records and results. There is no confirmation; this cannot be undone.

    Give job ids, or select jobs with --name, --label, --status and --older-than. Unfinished jobs are skipped by
    --older-than, unless --status or --force is given. Models that a job trained are kept. Jobs that others wait for,
    or whose results they read, are deleted with --force only.
    """
    from common.durations import parse_duration
    from producer.cli.job_arguments import for_each_job, notify_cancelled
    from producer.job_filter import JobFilter, parse_labels
    from producer.predecessors import name_jobs

    age = None if older_than is None else parse_duration(older_than, "--older-than")
    job_filter = JobFilter(JobStatus(status) if status else None, name, parse_labels(labels), age)

    def delete_one(job: "JobHandle") -> None:
        if age is not None and not (status or force or job.state.status.finished):
            return
        waiting, readers = job.waiting(), job.readers()
        job.delete(force=force)
        notify(f"job {job.id}: deleted")
        notify_cancelled(waiting, notify)
        if readers:
            notify(f"Its results were the input of {name_jobs(readers)}, whose results are shown without columns now.")

    with open_client() as client:
        for_each_job(client, jobs, job_filter, delete_one, notify)
