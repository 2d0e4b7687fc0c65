"""`producer up` and `down`."""

import sys

import click

from common.errors import UsageError
from producer.cli.terminal import notify


@click.command()
def down() -> None:
    """Stop the embedded worker and Redis that are kept for the next command (`--keep-alive`); their jobs stay."""
    from common.settings import load_settings
    from producer.embedded.attach import stop_kept_worker

    settings = load_settings()
    if not settings.embedded:
        raise UsageError("A Redis is configured (REDIS_URL): stop its workers where they run.")
    notify("stopped" if stop_kept_worker(settings) else "Nothing is running.")


@click.command()
@click.option("--device", help="auto, cpu, gpu, or GPUs as cuda:0,cuda:1.  [default: auto, all GPUs or else the CPU]")
@click.option("--preload", multiple=True, metavar="TASK[=MODEL]", help="Load a model at once; repeatable.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Flower's port.")
@click.option("--no-flower", is_flag=True, help="Start no Flower.")
def up(device: str | None, preload: tuple[str, ...], port: int, no_flower: bool) -> None:
    """Start Redis (unless one is configured), one worker per device, and Flower; Ctrl-C stops them all.

    Flower listens on this machine alone, and can only look, not act.

    \b
      producer up --preload fill-mask
      producer up --device cuda:0,cuda:1 --port 8555
    """
    from producer.cli.all_in_one import run_services

    sys.exit(run_services(device=device, preload=preload, port=None if no_flower else port, notify=notify))
