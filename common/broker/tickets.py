"""Tickets on their way: the messages that name a job, in the lists that Celery's workers consume.

They are written here, and not by `Celery.send_task`, because a producer would import Celery for this alone, which takes
longer than all the rest of a small submit, and a worker would spend a third of its time per chunk on it. The form is
Celery's message protocol, version 2, in the envelope of kombu's Redis transport, both documented.
"""

import base64
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from common.jobs import PRIORITIES, QUEUES, JobSpec
from common.redis.keys import CELERY_PREFIX
from common.tasks import find_task

#: Prefix of the names of handlers (tasks, to Celery): Flower shows them.
HANDLER_PREFIX = "hugqueue."
#: The handler of fine-tune jobs, whatever their task.
FINETUNE = f"{HANDLER_PREFIX}finetune"
#: What kombu puts between the name of a queue and a priority, which it rounds down to one of these.
_SEPARATOR, _PRIORITY_STEPS = "\x06\x16", (3, 6, 9)


def handler_name(task: str) -> str:
    """Return the name of a task's handler in Celery: one per task, so that Flower shows which is which."""
    return HANDLER_PREFIX + find_task(task).name


def send_tickets(client: "redis.Redis", spec: JobSpec, tickets: Iterable[str]) -> None:
    """Put tickets of a job at the tail of its queue, all at once.

    Raises:
        redis.RedisError: Redis is unavailable or full.
        UsageError: the job's task is unknown here.
    """
    priority = PRIORITIES[spec.priority]
    messages = [ticket_message(spec, ticket) for ticket in tickets]
    if messages:
        client.lpush(_list_of(spec.queue, priority), *messages)


def ticket_message(spec: JobSpec, ticket: str) -> bytes:
    """Return the message of a ticket."""
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers: dict[str, Any] = {
        "lang": "py",
        "task": FINETUNE if spec.training is not None else handler_name(spec.task),
        "id": ticket,
        "root_id": ticket,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": spec.title,
        "kwargsrepr": "",
        "ignore_result": True,
    }
    properties = {
        "correlation_id": ticket,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": spec.queue},
        "priority": PRIORITIES[spec.priority],
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),  # of this message: the same ticket may be sent again
    }
    message = {
        "body": base64.b64encode(json.dumps([[spec.id], {}, embedded]).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(message).encode()


def _list_of(queue: str, priority: int) -> str:
    step = max((step for step in _PRIORITY_STEPS if step <= priority), default=0)
    return f"{CELERY_PREFIX}{queue}" + (f"{_SEPARATOR}{step}" if step else "")


def waiting_tickets(client: "redis.Redis", page: int = 1000) -> Iterator[set[str]]:
    """Yield the ids of the tickets that wait in the queues, up to `page` at a time.

    Those that leave a queue and return meanwhile may be missed. There is a list for each queue and priority, which is
    filled from the left and consumed from the right.
    """
    lists = [_list_of(queue, step) for step in (0, *_PRIORITY_STEPS) for queue in QUEUES]
    with client.pipeline(transaction=False) as pipe:
        for name in lists:
            pipe.llen(name)
        lengths = pipe.execute()
    for name, length in zip(lists, lengths, strict=True):
        for start in range(0, length, page):
            end = start + page - 1 if start + page < length else -1  # new tickets have pushed the last ones further
            yield set(filter(None, map(_ticket_id, client.lrange(name, start, end))))


def _ticket_id(raw: bytes) -> str | None:
    try:
        return str(json.loads(raw)["headers"]["id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # not one of our messages
