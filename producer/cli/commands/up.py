"""`producer up` and `producer down`: start and stop a local queue."""

import sys

import click

from common.errors import UsageError
from producer.cli.terminal import notify


@click.command()
def down() -> None:
    """Stop the embedded worker and Redis that `--keep-alive` keeps for the next command. Jobs are kept."""
    from common.settings import load_settings
    from producer.embedded.attach import stop_kept_worker

    settings = load_settings()
    if not settings.embedded:
        raise UsageError("REDIS_URL is set: stop its workers where they run.")
    notify("stopped" if stop_kept_worker(settings) else "Nothing is running.")


@click.command()
@click.option("--device", help="auto, cpu, gpu, or GPUs such as cuda:0,cuda:1.  [default: auto (all GPUs or the CPU)]")
@click.option("--preload", multiple=True, metavar="TASK[=MODEL]", help="Load a model at start; repeatable.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port of Flower.")
@click.option("--no-flower", is_flag=True, help="Do not start Flower.")
def up(device: str | None, preload: tuple[str, ...], port: int, no_flower: bool) -> None:
    """Start Redis (unless one is configured), one worker per device, and Flower; Ctrl-C stops them all.

    Celery apps can submit jobs to it, as with `producer control`. Flower listens on localhost only and is read-only.

    \b
      producer up --preload fill-mask
      producer up --device cuda:0,cuda:1 --port 8555
    """
    from producer.cli.all_in_one import run_services

    sys.exit(run_services(device=device, preload=preload, port=None if no_flower else port, notify=notify))
