"""Tickets are written without Celery: they must be what Celery would have sent."""

import base64
import json
from typing import Any

import pytest

from common.broker.app import make_app
from common.broker.tickets import FINETUNE, handler_name, send_tickets, waiting_tickets
from common.jobs import PRIORITIES, JobSpec, new_job_id
from common.redis.keys import CELERY_PREFIX
from common.settings import Settings
from tests.support.processes import RedisServer

#: What differs from message to message, and what only Celery's own results and canvas read.
UNUSED = {"origin", "shadow", "group_index", "replaced_task_nesting", "stamped_headers", "stamps"}
PER_MESSAGE = {"reply_to", "delivery_tag", "argsrepr", "kwargsrepr"}


def sent(server: RedisServer) -> dict[bytes, list[dict[str, Any]]]:
    """Return the messages in each list, the first one first, and delete them."""
    keys = [key for key in server.client.keys(f"{CELERY_PREFIX}*") if server.client.type(key) == b"list"]
    found = {key: [json.loads(raw) for raw in reversed(server.client.lrange(key, 0, -1))] for key in keys}
    server.client.flushdb()
    return found


def compared(message: dict[str, Any]) -> dict[str, Any]:
    headers = {key: value for key, value in message["headers"].items() if key not in UNUSED}
    properties = {key: value for key, value in message["properties"].items() if key not in PER_MESSAGE}
    body = json.loads(base64.b64decode(message["body"]))
    return message | {"headers": headers, "properties": properties, "body": body}


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize(("queue", "training"), [("any", None), ("train", {"epochs": 1})])
def test_tickets_are_what_celery_would_send(server: RedisServer, priority: str, queue: str, training: Any) -> None:
    spec = JobSpec(
        new_job_id(), "fill-mask", queue=queue, priority=priority, training=training, name="a\x06 é \ud800", model="m"
    )
    tickets = ["t1", "t2", "t3"]
    with make_app(Settings(broker_url=server.url)) as app:
        for ticket in tickets:
            app.send_task(
                FINETUNE if training else handler_name(spec.task),
                args=(spec.id,),
                task_id=ticket,
                queue=queue,
                priority=PRIORITIES[priority],
                argsrepr=spec.title,
                kwargsrepr="",
                ignore_result=True,
            )
    expected = sent(server)
    send_tickets(server.client, spec, tickets)
    assert set().union(*waiting_tickets(server.client)) == set(tickets)
    found = sent(server)
    assert {key: list(map(compared, messages)) for key, messages in found.items()} == {
        key: list(map(compared, messages)) for key, messages in expected.items()
    }
    [messages] = found.values()
    assert len({message["properties"]["delivery_tag"] for message in messages}) == len(tickets)


def test_no_tickets_are_no_message(server: RedisServer) -> None:
    send_tickets(server.client, JobSpec(new_job_id(), "fill-mask"), [])
    assert not server.client.keys("*")
