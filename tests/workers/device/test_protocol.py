"""Messages between the Celery process and its device process: they arrive, and other bytes are refused."""

import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.records import Counts
from tests.support.processes import wait_until
from workers.device.protocol import (
    Alive,
    Cancel,
    ChunkResult,
    FromDevice,
    Message,
    MessageSocket,
    ProtocolError,
    Result,
    Run,
    SocketClosed,
    ToDevice,
)


@pytest.fixture
def ends() -> Iterator[tuple[MessageSocket[ToDevice], MessageSocket[FromDevice]]]:
    """The two ends of a message_socket: that of the device process, and that of the Celery process."""
    device, celery = socket.socketpair()
    sockets: tuple[MessageSocket[ToDevice], MessageSocket[FromDevice]] = (
        MessageSocket(device.detach(), ToDevice),
        MessageSocket(celery.detach(), FromDevice),
    )
    yield sockets
    for message_socket in sockets:
        message_socket.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.binary(max_size=1000), text=st.text(), id_=st.integers(0, 2**40))
def test_messages_arrive_as_they_were_sent(
    ends: tuple[MessageSocket[ToDevice], MessageSocket[FromDevice]], payload: bytes, text: str, id_: int
):
    device, celery = ends
    run = Run(id_, spec=text, positions=[0, 7], payload=payload)
    celery.send(run)
    assert device.receive(1) == run
    result = Result(id_, result=ChunkResult(payload, Counts(1), 0.5, {"model": text}), batch_sizes={"a": 512})
    device.send(result)
    assert celery.receive(1) == result


def refused(data: bytes, received: Any) -> bool:
    """Whether one end refuses what the other sends."""
    device, celery = socket.socketpair()
    message_socket: MessageSocket[Any] = MessageSocket(device.detach(), received)
    sender = Connection(celery.detach())
    try:
        sender.send_bytes(data)
        with pytest.raises(ProtocolError):
            message_socket.receive(1)
    finally:
        message_socket.close()
        sender.close()
    return True


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes):
    assert refused(data, FromDevice)


@pytest.mark.parametrize(
    "message",
    [
        [],
        {"type": "Nothing", "id": 1},
        {"type": ["Run"], "id": 1},
        {"type": "Alive", "id": -1},
        {"type": "Alive", "id": True},
        {"type": "Alive", "id": 1, "more": 1},
        {"type": "Batch", "id": 1},
        {"type": "Batch", "id": 1, "positions": "all"},
        {"type": "Batch", "id": 1, "positions": [1.5]},
        {"type": "Batch", "id": 1, "positions": [-1]},
        {"type": "Result", "id": 1, "result": {"payload": b"", "counts": [1, 2], "seconds": 0.5, "run_info": {}}},
    ],
)
def test_a_message_of_another_shape_is_refused(message: object):
    assert refused(msgspec.msgpack.encode(message), FromDevice)


def test_deep_nesting_is_refused():
    head = msgspec.msgpack.encode({"type": "DeviceStatus"})[1:]
    assert refused(b"\x82" + head + b"\xa6models" + b"\x91" * 200_000, FromDevice)


@pytest.mark.parametrize(("message", "received"), [(Cancel(1), FromDevice), (Alive(1), ToDevice)])
def test_each_end_takes_only_what_is_for_it(message: Message, received: object):
    assert refused(msgspec.msgpack.encode(message), received)


def test_sockets_time_out_and_see_the_end(ends: tuple[MessageSocket[ToDevice], MessageSocket[FromDevice]]):
    device, celery = ends
    assert celery.receive(0.01) is None
    device.send(Alive(7))
    assert wait_until(lambda: celery.receive(0.1)) == Alive(7)
    device.close()
    with pytest.raises(SocketClosed):
        celery.receive(1)
    with pytest.raises(SocketClosed):
        celery.send(Cancel(7))
