"""The control process: a Celery worker for the tasks, and the thread that wakes those that wait."""

import os
import warnings
from collections.abc import Callable

from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_ready

from producer.client import Client
from producer.control.app import CONTROL_QUEUE, make_control_app
from producer.control.tasks import ControlTasks
from producer.control.waits import Waits


def serve_tasks(client: Client, *, concurrency: int, log_level: str, on_ready: Callable[[], None]) -> int:
    """Serve the tasks of Celery apps until SIGTERM or SIGINT; return the exit status.

    Args:
        client: Of the queue.
        concurrency: How many tasks to run at once.
        log_level: Of Celery.
        on_ready: Called once tasks are taken from the queue.

    Raises:
        UsageError: The URL of the broker or of the results is wrong.
    """
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of root, which is harmless with JSON
    app = make_control_app(client.connection.settings, concurrency)
    name = f"control-{os.getpid()}@{os.uname().nodename}"
    waits = Waits(client.connection.store.client, app, name)
    ControlTasks(client, waits).add_to(app)

    def ready(**_: object) -> None:
        # At every lost connection Celery asks for a setting that deletes running work (`common.broker.app`).
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
        on_ready()

    worker_ready.connect(ready)
    worker = app.Worker(
        hostname=name,
        queues=[CONTROL_QUEUE],
        loglevel=log_level,
        quiet=True,
        redirect_stdouts=False,
        without_gossip=True,
        without_mingle=True,
    )
    with waits.waking():
        worker.start()
    return int(worker.exitcode or 0)
