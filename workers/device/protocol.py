"""What the Celery process and the device process say to each other, over one socket pair.

A message is the length of its header (four bytes, big-endian), the header as JSON, then the payload: the Arrow bytes
as they are. Both ends decode it defensively: a message that does not fit the table below ends the conversation.
"""

import contextlib
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from common.payloads.codec import MAX_BYTES
from common.records import Json

#: Longest message taken: a payload and room for its header.
_MAX_MESSAGE = MAX_BYTES + 16 * 1024 * 1024
#: Succeeded, failed, truncated.
_COUNTS = 3
_LENGTH = struct.Struct(">I")

#: Exit status of a device process whose device is lost (EX_IOERR of sysexits.h).
DEVICE_LOST = 74

#: Kind of message to the fields of its body and their types.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    # to the device process
    "open": {"policy": str, "preload": list, "budgets": dict, "prefetch": bool},
    "run": {"spec": str, "positions": (list, type(None)), "failures": dict},  # payload: records
    "cancel": {},
    # from it; request 0 stands for its own start
    "ready": {},
    "refused": {"error": str, "code": str, "message": str},
    "status": {
        "models": list,
        "free": (int, type(None)),
        "total": (int, type(None)),
        "evicted": int,
        "load_seconds": float,
        "since": float,  # by the monotonic clock, which all processes of a machine share
    },
    "begun": {},  # it is at this request now
    "over": {},  # and now no longer; its answer may have come before, if it was given up
    "stage": {"text": str},  # what it does before it runs: downloads, loads; empty once that is over
    "batch": {"positions": list},  # these are about to run, and all before them are done
    "tick": {},
    "result": {"counts": list, "seconds": float, "facts": dict, "budgets": dict},  # payload: outcomes
    "failed": {"error": str, "code": str, "message": str},
    "cancelled": {},
}


class ProtocolError(ValueError):
    """Raised when bytes from the other end are not a message of this protocol."""


class ChannelClosed(Exception):
    """Raised when the other end is gone. No `OSError`: an error of the work (a file, a disk) must not pass for one."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `id` is that of the request it belongs to, 0 for none."""

    kind: str
    id: int = 0
    body: Mapping[str, Json] = field(default_factory=dict)
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes that `decode` takes."""
        header = json.dumps({**self.body, "kind": self.kind, "id": self.id}).encode()
        return b"".join((_LENGTH.pack(len(header)), header, self.payload))

    @classmethod
    def decode(cls, data: bytes) -> "Message":
        """Return the message of these bytes.

        Raises:
            ProtocolError: they are none.
        """
        if len(data) < _LENGTH.size:
            raise ProtocolError(f"a message of {len(data)} bytes")
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        try:
            header = json.loads(data[_LENGTH.size : end])
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a header that is not JSON: {error}") from error
        if end > len(data) or not isinstance(header, dict):
            raise ProtocolError("a header that is cut short or no object")
        kind, id_ = header.pop("kind", None), header.pop("id", None)
        _check(kind, id_, header)
        return cls(kind, id_, header, data[end:])


def _check(kind: Json, id_: Json, body: Mapping[str, Json]) -> None:
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ProtocolError(f"unknown kind of message: {kind!r}")
    if not isinstance(id_, int) or isinstance(id_, bool) or id_ < 0:
        raise ProtocolError(f"{kind}: not the id of a request: {id_!r}")
    wanted = _FIELDS[kind]
    if body.keys() != wanted.keys():
        raise ProtocolError(f"{kind}: expected the fields {sorted(wanted)}, found {sorted(body)}")
    for name, types in wanted.items():
        if not isinstance(body[name], types):
            raise ProtocolError(f"{kind}: {name} is {type(body[name]).__name__}")
    if kind == "result" and len(integers(body["counts"])) != _COUNTS:
        raise ProtocolError(f"result: expected {_COUNTS} counts, found {body['counts']}")


def integers(value: Json) -> list[int]:
    """Return `value` if it is a list of whole numbers from 0.

    Raises:
        ProtocolError: it is not.
    """
    if not isinstance(value, list) or not all(type(number) is int and number >= 0 for number in value):
        raise ProtocolError(f"not a list of positions: {str(value)[:100]}")
    return value


@contextlib.contextmanager
def _closing() -> Iterator[None]:
    """Say what a broken connection raises in our words."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise ChannelClosed(str(error) or type(error).__name__) from error


class Channel:
    """One end of the socket pair; any thread may send, one thread receives."""

    def __init__(self, fd: int) -> None:
        self._connection: Connection[Any, Any] = Connection(fd)
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message whole.

        Raises:
            ChannelClosed: the other end is gone.
        """
        data = message.encode()
        with self._lock, _closing():
            self._connection.send_bytes(data)

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or None when `timeout` seconds passed without one.

        Raises:
            ChannelClosed: the other end closed, or the connection broke.
            ProtocolError: what came is no message.
        """
        with _closing():
            if not self._connection.poll(timeout):
                return None
            data = self._connection.recv_bytes(_MAX_MESSAGE)
        return Message.decode(data)

    def close(self) -> None:
        """Close this end; the other one reads an end of file."""
        with self._lock:
            self._connection.close()
