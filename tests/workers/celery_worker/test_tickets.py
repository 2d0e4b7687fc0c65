"""Tickets that a worker leaves to others: sent a little later, once, and by a thread of their own."""

import time
from collections.abc import Iterator

import pytest
import redis

from common.broker.tickets import waiting_tickets as pages_of_tickets
from common.jobs import JobSpec, new_job_id
from tests.support.processes import RedisServer, wait_until
from workers.celery_worker.tickets import TicketSender

SPEC = JobSpec(new_job_id(), "fill-mask")


def waiting_tickets(client: "redis.Redis") -> set[str]:
    return set().union(*pages_of_tickets(client, page=3))


@pytest.fixture
def sender(server: RedisServer) -> Iterator[TicketSender]:
    sender = TicketSender(server.client)
    sender.start()
    yield sender
    sender.stop()


def test_tickets_passed_on_reach_their_queue_soon_and_block_nobody(sender: TicketSender, server: RedisServer) -> None:
    names = {f"ticket-{number}" for number in range(20)}
    start = time.monotonic()
    for name in names:
        sender.requeue(SPEC, name)
        sender.requeue(SPEC, name)
    assert time.monotonic() - start < 0.25, "none of them is waited for"
    assert waiting_tickets(server.client) == set()
    wait_until(lambda: waiting_tickets(server.client) == names, 30)
    assert sum(server.client.llen(key) for key in server.client.keys("hugqueue:celery:any*")) == len(names)


def test_a_ticket_is_recalled_or_sent_and_never_both(sender: TicketSender, server: RedisServer) -> None:
    for name in ("recalled", "sent"):
        sender.send_later(SPEC, name, 0.1 if name == "sent" else 3600.0)
    assert sender.recall("recalled")
    assert not sender.recall("recalled")
    wait_until(lambda: waiting_tickets(server.client) == {"sent"}, 30)
    assert not sender.recall("sent")
    sender.send_later(SPEC, "last", 3600.0)
    sender.stop()
    assert waiting_tickets(server.client) == {"sent", "last"}


def test_tickets_that_are_kept_go_out_when_the_worker_stops(sender: TicketSender, server: RedisServer) -> None:
    sender.requeue(SPEC, "kept")
    sender.stop()
    assert waiting_tickets(server.client) == {"kept"}
    sender.requeue(SPEC, "late")
    assert waiting_tickets(server.client) == {"kept", "late"}


def test_tickets_that_cannot_be_sent_are_left_to_the_reaper(
    sender: TicketSender, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    sender.send(SPEC, ["lost"])
    assert "the reaper will" in caplog.text
