"""`producer jobs`, `status` and `cancel`."""

import click

from common.errors import UnknownJob
from common.values import JobStatus
from producer.commands.frame import json_option, open_client
from producer.printing import print_json, say


@click.command()
@click.option("--status", type=click.Choice([str(status) for status in JobStatus]), help="Only those that stand so.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@json_option
def jobs(status: str | None, limit: int, as_json: bool) -> None:
    """List jobs, the newest first."""
    with open_client() as client:
        found = client.jobs()
    chosen = [job for job in found if status in (None, job.status)][:limit]
    if as_json:
        print_json([job.as_dict() for job in chosen])
        return
    from producer.tables import show_jobs

    show_jobs(chosen)
    if not found:
        say("There are no jobs yet. `producer submit --task TASK FILE` makes one.")


@click.command()
@click.argument("job")
@json_option
def status(job: str, as_json: bool) -> None:
    """Show where a job stands: status, counts, what it runs on, why it failed."""
    with open_client() as client:
        found, refusals = client.job(job), client.refusals(job)
    if as_json:
        print_json(found.as_dict() | {"refusals": refusals})
        return
    from producer.tables import show_job

    show_job(found, refusals)


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
@json_option
def cancel(jobs: tuple[str, ...], as_json: bool) -> None:
    """Stop jobs and keep what is done; `producer results JOB` gives it."""
    unknown: list[UnknownJob] = []
    stopped = []
    with open_client() as client:
        for job in jobs:
            try:
                over = client.job(job).status.finished
                client.cancel(job)
            except UnknownJob as error:
                unknown.append(error)
                continue
            stopped.append(client.job(job))
            if not as_json:
                say(f"job {job}: {'was over before: ' if over else ''}{stopped[-1].status}")
        if as_json:
            print_json([job.as_dict() for job in stopped])
        if unknown:
            raise unknown[0]
