"""`producer control`: serve tasks for Celery apps that submit jobs without importing hugqueue."""

import sys
import time
from contextlib import ExitStack

import click

from producer.cli.session import open_client
from producer.cli.terminal import notify


@click.command()
@click.option("--concurrency", type=click.IntRange(1, 100), default=4, show_default=True, help="Tasks to run at once.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Minimum level of log messages.",
)
def control(concurrency: int, log_level: str) -> None:
    """Serve the tasks hugqueue.submit, hugqueue.wait and others for Celery apps, until Ctrl-C or SIGTERM.

    The apps send them to the queue hugqueue.control of the same Redis, or of HUGQUEUE_CONTROL_BROKER_URL. Any number of
    these processes may run at once.

    \b
      producer control
    """
    from common.logs import configure_logging
    from common.redis.client import retry_while_unavailable
    from common.settings import load_settings
    from producer.control import serve_tasks

    configure_logging(log_level.upper())
    may_open = load_settings().may_open
    waited = False

    def wait(error: Exception) -> None:
        nonlocal waited
        if not waited:
            notify(f"{error} Waiting for it.")
        waited = True
        time.sleep(1)

    with ExitStack() as stack:
        client = retry_while_unavailable(
            lambda: stack.enter_context(open_client(with_worker=True, may_open=may_open)), wait
        )
        status = serve_tasks(
            client,
            concurrency=concurrency,
            log_level=log_level,
            on_ready=lambda: notify("serving tasks on the queue hugqueue.control; Ctrl-C stops"),
        )
    sys.exit(status)
