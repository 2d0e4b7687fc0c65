"""`producer jobs`, `status`, `cancel` and `delete`."""

from typing import TYPE_CHECKING

import click

from common.values import JobStatus
from producer.commands.frame import open_client
from producer.commands.options import json_option, label_option, selecting
from producer.printing import print_json, say

if TYPE_CHECKING:
    from common.jobs import Job
    from producer.handle import JobHandle


@click.command()
@click.option("--status", type=click.Choice([str(status) for status in JobStatus]), help="Only those that stand so.")
@click.option("--name", metavar="TEXT", help="Only those of that name; * stands for any text.")
@label_option("Only those that have this label; repeatable, all must fit.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@json_option
def jobs(status: str | None, name: str | None, labels: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List jobs, the newest first."""
    from producer.selection import parse_labels

    wanted = parse_labels(labels)
    with open_client() as client:
        found = [job.state for job in client.jobs(status=status, name=name, labels=wanted, limit=limit)]
        none_at_all = not found and not client.jobs(limit=1)
    if as_json:
        print_json([job.as_dict() for job in found])
        return
    from producer.tables import show_jobs

    show_jobs(found)
    if none_at_all:
        say("There are no jobs yet. `producer submit --task TASK FILE` makes one.")


@click.command()
@click.argument("job")
@json_option
def status(job: str, as_json: bool) -> None:
    """Show where a job stands: status, counts, what it runs on, why it failed."""
    with open_client() as client:
        found = client.job(job)
        refusals = found.refusals()
    if as_json:
        print_json(found.state.as_dict() | {"refusals": refusals})
        return
    from producer.tables import show_job

    show_job(found.state, refusals)


@click.command()
@selecting
@json_option
def cancel(jobs: tuple[str, ...], name: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """Stop jobs and keep what is done; `producer results JOB` gives it.

    Name them, or choose by --name and --label among those that are not finished.
    """
    from producer.choosing import do_for_each, raise_last

    stopped: list[Job] = []

    def stop(job: "JobHandle") -> None:
        over = job.state.status.finished
        if over and not jobs:
            return
        job.cancel()
        stopped.append(job.refresh())
        if not as_json:
            say(f"job {job.id}: {'had already ended: ' if over else ''}{job.state.status}")

    with open_client() as client:
        faults = do_for_each(client, jobs, name, labels, stop)
        if as_json:
            print_json([job.as_dict() for job in stopped])
        raise_last(faults, say)


@click.command()
@selecting
@click.option("--force", is_flag=True, help="Unfinished ones too: they are stopped, and what is done is lost.")
def delete(jobs: tuple[str, ...], name: str | None, labels: tuple[str, ...], force: bool) -> None:
    """Forget finished jobs: records, results and all. Nothing is asked, and nothing brings them back.

    Name them, or choose by --name and --label. A model that a job trained stays.
    """
    from producer.choosing import do_for_each, raise_last

    def forget(job: "JobHandle") -> None:
        job.delete(force=force)
        say(f"job {job.id}: deleted")

    with open_client() as client:
        faults = do_for_each(client, jobs, name, labels, forget)
        raise_last(faults, say)
