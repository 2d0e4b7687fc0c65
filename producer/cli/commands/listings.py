"""`producer tasks` and `producer workers`: list tasks and live workers."""

import click

from common.jobs import iso_time
from producer.cli.options import json_option
from producer.cli.session import open_client
from producer.cli.terminal import notify, print_json


@click.command()
@json_option
def tasks(as_json: bool) -> None:
    """List tasks with their input fields, output and default model."""
    from common.tasks import list_tasks

    listed = list_tasks()
    if as_json:
        print_json([{"name": name, **task.as_dict()} for name, task in listed])
        return
    from producer.cli.tables import show_tasks

    show_tasks(listed)


@click.command()
@json_option
def workers(as_json: bool) -> None:
    """List live workers: device, queues, throughput, loaded models."""
    with open_client() as client:
        found = client.workers()
    if as_json:
        print_json([worker.as_dict() | {"started_at": iso_time(worker.started_at)} for worker in found])
        return
    from producer.cli.tables import show_workers

    show_workers(found)
    if not found:
        notify("There are no live workers. `workers start` starts one.")
