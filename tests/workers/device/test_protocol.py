"""Messages between the two rooms: what is said arrives, and what is no message is refused."""

import json
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.processes import wait_until
from workers.device.protocol import Channel, ChannelClosed, Message, ProtocolError, integers


def _framed(header: object, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text + payload


@given(st.binary(max_size=1000), st.text(), st.integers(0, 2**40))
def test_a_message_arrives_as_it_was_sent(payload: bytes, text: str, id_: int):
    message = Message("stage", id_, {"text": text}, payload)
    assert Message.decode(message.encode()) == message


@given(st.binary(max_size=200))
def test_random_bytes_are_no_message(data: bytes):
    with pytest.raises(ProtocolError):
        Message.decode(data)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"kind": "nothing", "id": 1},
        {"kind": ["run"], "id": 1},
        {"kind": "tick"},
        {"kind": "tick", "id": -1},
        {"kind": "tick", "id": True},
        {"kind": "tick", "id": 1, "more": 1},
        {"kind": "batch", "id": 1},
        {"kind": "batch", "id": 1, "positions": "all"},
        {"kind": "result", "id": 1, "counts": [1, 2], "seconds": 0.5, "facts": {}},
        {"kind": "result", "id": 1, "counts": [1, 2, -3], "seconds": 0.5, "facts": {}},
    ],
)
def test_a_header_that_does_not_fit_is_refused(header: object):
    with pytest.raises(ProtocolError):
        Message.decode(_framed(header))


def test_a_header_longer_than_its_message_is_refused():
    with pytest.raises(ProtocolError):
        Message.decode(struct.pack(">I", 1000) + b"{}")


def test_a_header_of_deep_nesting_is_refused():
    text = b"[" * 200_000
    with pytest.raises(ProtocolError):
        Message.decode(struct.pack(">I", len(text)) + text)


@pytest.mark.parametrize("value", [None, "1", [1.5], [True], [-1], [[1]]])
def test_positions_are_whole_numbers_from_zero(value: object):
    with pytest.raises(ProtocolError):
        integers(value)


def test_channels_pass_messages_time_out_and_see_the_end():
    ours, theirs = (Channel(end.detach()) for end in socket.socketpair())
    assert ours.receive(0.01) is None
    theirs.send(Message("tick", 7))
    assert wait_until(lambda: ours.receive(0.1)) == Message("tick", 7)
    theirs.close()
    with pytest.raises(ChannelClosed):
        ours.receive(1)
    with pytest.raises(ChannelClosed):
        ours.send(Message("tick", 7))
    ours.close()
