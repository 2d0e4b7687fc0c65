"""`producer jobs`, `status`, `cancel` and `delete`."""

import sys
from typing import TYPE_CHECKING

import click

from common.errors import UsageError
from common.jobs import JobStatus
from common.text import replace_control_chars
from producer.cli.options import job_argument, jobs_argument, json_option, label_option, status_option
from producer.cli.session import open_client
from producer.cli.terminal import notify, print_json

if TYPE_CHECKING:
    from common.jobs import Job
    from producer.job_handle import JobHandle


@click.command()
@status_option
@click.option("--name", metavar="TEXT", help="Only those of that name; * stands for any text.")
@label_option("Only those that have this label; repeatable, all must fit.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@click.option("--watch", is_flag=True, help="Show them again and again, until Ctrl-C; on a terminal.")
@json_option
def jobs(status: str | None, name: str | None, labels: tuple[str, ...], limit: int, watch: bool, as_json: bool) -> None:
    """List jobs, the newest first."""
    from producer.job_filter import parse_labels

    wanted = parse_labels(labels)
    if watch and (as_json or not sys.stdout.isatty()):
        raise UsageError(
            "--watch is for a terminal; a program looks at `producer jobs --json` as often as it needs to."
        )
    with open_client() as client:
        if watch:
            from producer.cli.tables import watch_jobs

            watch_jobs(lambda: [j.state for j in client.jobs(status=status, name=name, labels=wanted, limit=limit)])
        found = [job.state for job in client.jobs(status=status, name=name, labels=wanted, limit=limit)]
        none_at_all = not found and not client.jobs(limit=1)
    if as_json:
        print_json([job.as_dict() for job in found])
        return
    from producer.cli.tables import show_jobs

    show_jobs(found)
    if none_at_all:
        notify("There are no jobs yet. `producer submit --task TASK FILE` makes one.")


@click.command()
@job_argument
@json_option
def status(job: str, as_json: bool) -> None:
    """Show where a job stands: status, counts, what it runs on, why it failed."""
    with open_client() as client:
        found = client.job(job)
        refusals = found.refusals()
    if as_json:
        print_json(found.state.as_dict() | {"refusals": refusals})
        return
    from producer.cli.tables import show_job

    show_job(found.state, refusals)


@click.command()
@job_argument
def logs(job: str) -> None:
    """Show what the embedded worker logged about a job, for as long as its log is kept.

    Workers of a queue of your own log where they run.
    """
    with open_client() as client:
        for entry in client.logs(job):
            click.echo(replace_control_chars(entry))


@click.command()
@jobs_argument
@json_option
def cancel(jobs: tuple[str, ...], name: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """Stop jobs and keep what is done; `producer results JOB` gives it.

    Name them, or choose by --name and --label among those that are not finished.
    """
    from producer.cli.job_arguments import for_each_job, raise_last
    from producer.job_filter import JobFilter, parse_labels

    wanted = JobFilter(name=name, labels=parse_labels(labels))
    stopped: list[Job] = []

    def stop(job: "JobHandle") -> None:
        over = job.state.status.finished
        if over and not jobs:
            return
        job.cancel()
        stopped.append(job.refresh())
        if not as_json:
            notify(f"job {job.id}: {'had already ended: ' if over else ''}{job.state.status}")

    with open_client() as client:
        faults = for_each_job(client, jobs, wanted, stop)
        if as_json:
            print_json([job.as_dict() for job in stopped])
        raise_last(faults, notify)


@click.command()
@jobs_argument
@status_option
@click.option("--older-than", metavar="SPAN", help="Jobs submitted longer ago than that, as 12h or 7d.")
@click.option("--force", is_flag=True, help="Unfinished ones too: they are stopped, and what is done is lost.")
def delete(
    jobs: tuple[str, ...],
    name: str | None,
    labels: tuple[str, ...],
    status: str | None,
    older_than: str | None,
    force: bool,
) -> None:
    """Forget finished jobs: records, results and all. Nothing is asked, and nothing brings them back.

    Name them, or choose by --name, --label, --status and --older-than; unfinished ones that are chosen so, and not by
    --status, are left alone. A model that a job trained stays.
    """
    from common.durations import parse_duration
    from producer.cli.job_arguments import for_each_job, raise_last
    from producer.job_filter import JobFilter, parse_labels

    age = None if older_than is None else parse_duration(older_than, "--older-than")
    wanted = JobFilter(JobStatus(status) if status else None, name, parse_labels(labels), age)

    def forget(job: "JobHandle") -> None:
        if age is not None and not (status or force or job.state.status.finished):
            return
        job.delete(force=force)
        notify(f"job {job.id}: deleted")

    with open_client() as client:
        faults = for_each_job(client, jobs, wanted, forget)
        raise_last(faults, notify)
