"""What comes out of a queue: messages as Celery writes them, and nothing else, whatever the address looks like."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Consumer, Queue

from common.broker.app import make_app
from common.broker.transport import MAX_DEAD_LETTER_BYTES, MAX_DEAD_LETTERS, Transport, fault_of
from common.redis.keys import CELERY_PREFIX, DEAD_LETTERS
from common.settings import Settings
from tests.support.forged_messages import NOT_JSON, NOT_OBJECTS, QUEUE, ticket
from tests.support.processes import RedisServer, wait_until

HEADERS = st.dictionaries(st.text() | st.sampled_from(["id", "task", "shadow"]), st.none() | st.text() | st.integers())


def take_all(server: RedisServer, fail: Callable[[str], None] = lambda _: None) -> list[str]:
    """Return the ids of all messages in the queue `any`, as a consumer gets them."""
    taken: list[str] = []

    def take(_: Any, message: Any) -> None:
        taken.append(message.headers["id"])
        message.ack()
        fail(message.headers["id"])

    app = make_app(Settings(broker_url=server.url))
    with app.connection_for_read() as connection, Consumer(connection, [Queue("any")], callbacks=[take]):
        while server.client.keys(f"{QUEUE}*"):
            try:
                connection.drain_events(timeout=2)
            except TimeoutError:
                continue
    return taken


def put(server: RedisServer, *messages: bytes) -> None:
    server.client.lpush(QUEUE, *messages)


def as_bytes(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


@given(st.binary())
def test_random_bytes_are_not_a_message(data: bytes):
    assert fault_of(data)


@given(HEADERS)
def test_headers_that_should_be_text_are_text(headers: dict[str, Any]):
    odd = [name for name in ("id", "task", "shadow") if isinstance(headers.get(name), int)]
    fault = fault_of(as_bytes({"headers": headers}))
    assert (fault is not None) == bool(odd)
    assert not odd or any(name in str(fault) for name in odd)


def test_a_message_as_celery_writes_it_is_one():
    assert fault_of(as_bytes(ticket())) is None


def test_an_invalid_message_becomes_a_dead_letter(server: RedisServer):
    good = [ticket() for _ in range(3)]
    put(server, as_bytes(good[0]), *NOT_JSON, as_bytes(good[1]), *NOT_OBJECTS, as_bytes(good[2]))
    assert take_all(server) == [message["headers"]["id"] for message in good]
    dead = server.client.lrange(DEAD_LETTERS, 0, -1)
    assert sorted(dead) == sorted(message[:MAX_DEAD_LETTER_BYTES] for message in [*NOT_JSON, *NOT_OBJECTS])


def test_a_message_its_consumer_fails_on_becomes_a_dead_letter(server: RedisServer):
    def fail(id_: str) -> None:
        if id_ == bad["headers"]["id"]:
            raise RuntimeError("no consumer expects this")

    bad, good = ticket(), ticket()
    put(server, as_bytes(bad), as_bytes(good))
    assert take_all(server, fail) == [bad["headers"]["id"], good["headers"]["id"]]
    assert [json.loads(message)["headers"]["id"] for message in server.client.lrange(DEAD_LETTERS, 0, -1)] == [
        bad["headers"]["id"]
    ]


def test_the_list_of_refused_messages_does_not_grow_without_limit(server: RedisServer):
    put(server, *(b"%d" % number for number in range(MAX_DEAD_LETTERS + 20)))
    take_all(server)
    assert server.client.llen(DEAD_LETTERS) == MAX_DEAD_LETTERS
    assert server.client.lindex(DEAD_LETTERS, 0) == b"%d" % (MAX_DEAD_LETTERS + 19), "the latest comes first"


def test_messages_are_delivered_by_priority(server: RedisServer):
    low, high = ticket(), ticket()
    server.client.lpush(f"{QUEUE}\x06\x166", as_bytes(low))
    server.client.lpush(QUEUE, as_bytes(high))
    assert take_all(server) == [high["headers"]["id"], low["headers"]["id"]]


@pytest.mark.parametrize("url", ["redis://:secret@localhost:1/0", "rediss://localhost:1/0"])
def test_any_redis_url_selects_this_transport_and_stays_unchanged(url: str):
    with make_app(Settings(broker_url=url)).connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
        assert connection.clone().get_transport_cls() is Transport
        assert connection.as_uri(include_password=True).startswith(url.rpartition("/")[0])


def test_a_socket_url_selects_this_transport_too(tmp_path: Path):
    path = tmp_path / "redis.sock"
    server = RedisServer(tmp_path / "redis", "--unixsocket", str(path)).start()
    try:
        put(server, b"not a message", as_bytes(message := ticket()))
        app = make_app(Settings(broker_url=f"redis+socket://{path}?virtual_host=0"))
        taken: list[str] = []
        with app.connection_for_read() as connection, Consumer(connection, [Queue("any")]) as consumer:
            consumer.register_callback(lambda _, got: taken.append(got.headers["id"]))
            while not taken:
                connection.drain_events(timeout=5)
        assert taken == [message["headers"]["id"]]
        assert server.client.lrange(DEAD_LETTERS, 0, -1) == [b"not a message"]
        assert all(key.startswith(CELERY_PREFIX.encode()) for key in server.client.scan_iter())
    finally:
        server.kill()


def test_a_message_that_is_received_while_redis_is_full_is_kept(server: RedisServer):
    app = make_app(Settings(broker_url=server.url))
    options = {name: value for name, value in app.conf.broker_transport_options.items() if name != "ack_emulation"}
    app.conf.broker_transport_options = options  # as of the control queue: a message is recorded until it is processed
    put(server, as_bytes(ticket()))
    taken: list[Any] = []
    with app.connection_for_read() as connection, Consumer(connection, [Queue("any")], on_message=taken.append):
        server.client.config_set("maxmemory", 1)
        consumer = threading.Thread(target=connection.drain_events, kwargs={"timeout": 30})
        consumer.start()
        wait_until(lambda: not server.client.exists(QUEUE), 30, "the message is received")
        server.client.config_set("maxmemory", 0)
        consumer.join(30)
        assert [message.headers["task"] for message in taken] == [ticket()["headers"]["task"]]
        taken[0].ack()
