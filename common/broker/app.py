"""The Celery side of the contract: the app, its settings, and the sending of tickets.

`celery -A hugqueue flower` watches it (`hugqueue.celery`). The worker's app is this one with handlers (`workers.app`).
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery
from kombu import Queue

from common.broker.transport import Amqp
from common.jobs import PRIORITIES, QUEUES, JobSpec
from common.redis.keys import CELERY_PREFIX
from common.redis.url import tls_options
from common.settings import Settings, load_settings
from common.tasks import find_task

#: Seconds for one try at the broker. A command must have ended, with an answer or an error, after ten.
_TIMEOUT = 2.5

#: Celery's own name for the way from a ticket to its handler begins so: it is what Flower shows.
HANDLER_PREFIX = "hugqueue."
#: The handler of fine-tune jobs, whatever their task.
FINETUNE = f"{HANDLER_PREFIX}finetune"


def make_app(settings: Settings) -> Celery:
    """Return a Celery app on the Redis of `settings`; nothing is connected yet."""
    address = settings.broker_url or "redis://"
    app = Celery("hugqueue", broker=address, amqp=Amqp, set_as_current=False)
    app.conf.update(
        # Late acks: a ticket counts as in hand until its turn is over, so that a worker takes no more than its slots.
        task_acks_late=True,
        # One ticket a slot and no more: a ticket in a worker's pocket is a turn that nobody else can take.
        worker_prefetch_multiplier=1,
        # Outcomes go to the store; Celery's results would pass through Redis twice and say PENDING for "unknown".
        task_ignore_result=True,
        # JSON alone: pickle in a message is code run by whoever can write to Redis.
        task_serializer="json",
        accept_content=["json"],
        # Slots of a light process that waits for the device process; prefork would fork what must not be forked.
        worker_pool="threads",
        worker_concurrency=3,
        # True deletes running work when Redis restarts (celery 5.7, tried out).
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # For ever: a worker waits for Redis as long as it takes.
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        # Also when Redis answers with an error (it is full, say): without this the worker ends.
        broker_channel_error_retry=True,
        broker_connection_timeout=_TIMEOUT,
        broker_transport_options={
            "global_keyprefix": CELERY_PREFIX,
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": _TIMEOUT,
            "health_check_interval": 15,
            "retry_on_timeout": False,
            "max_retries": 1,
            # kombu's own notes of what is in whose hands go by the workers' clocks, cannot be written while Redis is
            # full, and bring a slow worker's tickets back after an hour. The ledger and the reaper do that work.
            "ack_emulation": False,
            # Between queues: take turns, so that `any` does not starve behind `gpu`.
            "queue_order_strategy": "round_robin",
        },
        task_publish_retry=True,
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1, "interval_max": 0.5},
        task_queues=[Queue(name, routing_key=name) for name in QUEUES],
        # No exchange: a queue is its list in Redis. A binding is one more key that can be lost, and messages with it.
        task_default_exchange="",
        task_default_queue="any",
        task_create_missing_queues=False,
        # What Flower lives on.
        worker_send_task_events=True,
        task_send_sent_event=True,
        # Logging is ours: the root logger is set up by `workers`.
        worker_hijack_root_logger=False,
    )
    if (tls := tls_options(address)) is not None:
        app.conf.broker_use_ssl = tls  # Flower reads it here; kombu would find it in the address too
    return app


def handler_name(task: str) -> str:
    """Return the Celery name of the handler of a task: one per task, so that Flower tells them apart."""
    return HANDLER_PREFIX + find_task(task).name


def send_tickets(app: Celery, spec: JobSpec, tickets: Iterable[str]) -> None:
    """Put tickets of a job at the tail of its queue.

    Raises:
        kombu.exceptions.OperationalError: Redis is away or full.
    """
    for ticket in tickets:
        app.send_task(
            FINETUNE if spec.training is not None else handler_name(spec.task),
            args=(spec.id,),
            task_id=ticket,
            queue=spec.queue,
            priority=PRIORITIES[spec.priority],
            argsrepr=spec.title,
            kwargsrepr="",
            ignore_result=True,
        )


def waiting_tickets(client: "redis.Redis", page: int = 1000) -> Iterator[set[str]]:
    """Yield the ids of the tickets that lie in the queues, so many at a time at most.

    Those that leave a queue and come back meanwhile may be left out. Reads kombu's own keys
    (`kombu/transport/redis.py`): a list for each queue and priority, which grows at its left and is eaten at its right.
    """
    lists = [f"{CELERY_PREFIX}{queue}" for queue in QUEUES]
    lists += [f"{name}\x06\x16{step}" for name in lists for step in (3, 6, 9)]
    with client.pipeline(transaction=False) as pipe:
        for name in lists:
            pipe.llen(name)
        lengths = pipe.execute()
    for name, length in zip(lists, lengths, strict=True):
        for start in range(0, length, page):
            end = start + page - 1 if start + page < length else -1  # what came meanwhile has pushed the last ones on
            yield {ticket for raw in client.lrange(name, start, end) for ticket in _ticket_ids(raw)}


def _ticket_ids(raw: bytes) -> Iterator[str]:
    try:
        message: Any = json.loads(raw)
        yield str(message["headers"]["id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return  # not a message of ours


if not TYPE_CHECKING:  # a type checker would take any name for one of this module

    def __getattr__(name: str) -> Any:
        """Make `app` when `celery -A common.broker.app` asks for it: importers have settings of their own."""
        if name != "app":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return make_app(load_settings())
