"""Celery app: its settings, and the `celery` command with it.

`celery -A hugqueue flower` monitors it (`hugqueue.celery`); workers add handlers to it (`workers.app`).
"""

from typing import NoReturn

from celery import Celery
from kombu import Queue

from common.broker.transport import Amqp
from common.jobs import QUEUES
from common.redis.keys import CELERY_PREFIX
from common.redis.url import tls_options
from common.settings import Settings

#: Seconds for one attempt to reach the broker. A command must end within ten, with an answer or an error.
_TIMEOUT = 2.5


def make_app(settings: Settings) -> Celery:
    """Return a Celery app on the Redis of `settings`; nothing is connected yet."""
    url = settings.broker_url or "redis://"
    app = Celery("hugqueue", broker=url, amqp=Amqp, set_as_current=False)
    app.conf.update(
        # Acknowledge late: a ticket occupies its slot until it is processed, so that a worker takes no more.
        task_acks_late=True,
        # One ticket for each slot: no other worker can take one that was prefetched.
        worker_prefetch_multiplier=1,
        # Outcomes have their own keys; Celery's results would pass through Redis twice and say PENDING for "unknown".
        task_ignore_result=True,
        # Only JSON: pickle would let anybody who can write to Redis run code.
        task_serializer="json",
        accept_content=["json"],
        # Threads that wait for the device process; prefork processes could not share its client.
        worker_pool="threads",
        worker_concurrency=3,
        # True deletes running work when Redis restarts (tried with celery 5.7).
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Without limit: a worker waits for Redis as long as it takes.
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        # Also when Redis answers with an error, for example because it is full; otherwise the worker ends.
        broker_channel_error_retry=True,
        broker_connection_timeout=_TIMEOUT,
        broker_transport_options={
            "global_keyprefix": CELERY_PREFIX,
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": _TIMEOUT,
            "health_check_interval": 15,
            "retry_on_timeout": False,
            "max_retries": 1,
            # kombu's record of unacknowledged messages goes by the workers' clocks, cannot be written while Redis is
            # full, and redelivers a slow worker's tickets after an hour. The ledger and the reaper do that work.
            "ack_emulation": False,
            # Alternate between queues, so that `any` does not starve behind `gpu`.
            "queue_order_strategy": "round_robin",
        },
        task_publish_retry=True,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1, "interval_max": 0.5},
        task_queues=[Queue(name, routing_key=name) for name in QUEUES],
        # No exchange: a queue is just its list in Redis. A lost binding would lose messages.
        task_default_exchange="",
        task_default_queue="any",
        task_create_missing_queues=False,
        # Flower needs these events.
        worker_send_task_events=True,
        # `workers` configures the root logger.
        worker_hijack_root_logger=False,
    )
    if (tls := tls_options(url)) is not None:
        app.conf.broker_use_ssl = tls  # Flower reads it here; kombu would find it in the URL too
    return app


def run_celery(app: Celery) -> NoReturn:
    """Run the `celery` command with this app and the arguments of this process: `python -P -m workers.app worker`.

    `celery -A` imports the app by name with the working directory first on the path, which may hold another
    `common/` or `workers/`.
    """
    from celery.bin.celery import celery as command

    [option] = [option for option in command.params if option.name == "app"]
    option.default = app  # it accepts apps as well as names
    option.envvar, option.allow_from_autoenv = None, False  # $APP and $CELERY_APP are for other apps
    command(auto_envvar_prefix="CELERY")  # as `python -m celery` calls it
    raise SystemExit(0)
