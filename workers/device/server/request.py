"""One request to the device process on its way through the room."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import ref

from common.errors import Cancelled
from common.jobs import JobSpec
from common.payloads.codec import decode_records
from common.records import Failure, Record
from workers.device.protocol import Channel, Message, ProtocolError, integers
from workers.device.server.run_chunk import ChunkInputs
from workers.inference.core.runner import Runner

#: Signs of life within a batch are sent at most this often, in seconds.
_TICK_SECONDS = 1.0


class Prefetched(NamedTuple):
    """What a runner did of a request beforehand; a model that is let go meanwhile is not held by it."""

    runner: "ref[Runner]"
    inputs: ChunkInputs

    def by(self, runner: Runner) -> ChunkInputs | None:
        """Return the inputs, if this is the runner that prepared them."""
        return self.inputs if self.runner() is runner else None


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way through the room; its watch as well."""

    id: int
    spec: JobSpec
    channel: Channel
    records: dict[int, Record] = field(default_factory=dict)  #: by position in the chunk, in the order to answer
    ahead: Prefetched | None = None  #: what was done of it while another one was computed
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: bool = False
    _cancelled: bool = False
    _answered: bool = False
    _ticked: float = 0.0

    def cancel(self) -> None:
        """Answer `cancelled`, now if nothing runs, else as soon as the runner asks its watch."""
        with self._lock:
            self._cancelled = True
            if self._running or self._answered:
                return
            self._answered = True
        self.channel.send(Message("cancelled", self.id))

    def answer(self, message: Message) -> None:
        """Send the answer, unless there was one."""
        with self._lock:
            if self._answered:
                return
            self._answered = True
        self.channel.send(message)

    def start_loading(self) -> None:
        """Say that the process is at this request now. Raises `Cancelled`."""
        self._check()
        self.channel.send(Message("begun", self.id))

    def stage(self, text: str) -> None:
        """Say what takes time before anything runs; empty once it is over. Raises `Cancelled`."""
        self._check()
        self.channel.send(Message("stage", self.id, {"text": text}))

    def start_running(self) -> None:
        """From here on, giving up waits for the runner, and silence counts. Raises `Cancelled`."""
        with self._lock:
            self._running = not self._cancelled
        self._check()
        self.channel.send(Message("tick", self.id))

    def batch(self, positions: Sequence[int]) -> None:
        """Say which records are about to run. Raises `Cancelled`."""
        self._check()
        self._ticked = time.monotonic()
        self.channel.send(Message("batch", self.id, {"positions": list(positions)}))

    def tick(self) -> None:
        """Give a sign of life, now and then. Raises `Cancelled`."""
        self._check()
        if time.monotonic() - self._ticked >= _TICK_SECONDS:
            self._ticked = time.monotonic()
            self.channel.send(Message("tick", self.id))

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled


def decode_request(message: Message, channel: Channel) -> Request:
    """Return the request that a `run` message asks for.

    Raises:
        ProtocolError: it asks for what is not there.
        PayloadError: its payload is none.
        ValueError: its job is none.
    """
    body = message.body
    spec = JobSpec.decode(body["spec"])
    records = decode_records(message.payload)
    wanted = range(len(records)) if body["positions"] is None else integers(body["positions"])
    if any(position >= len(records) for position in wanted):
        raise ProtocolError(f"a position beyond the {len(records)} records of the chunk")
    chosen = {position: records[position] for position in wanted}
    for position, (code, text) in body["failures"].items():
        record = records[int(position)]
        chosen[int(position)] = Record(record.id, record.input, Failure(str(code), str(text)))
    return Request(message.id, spec, channel, chosen)
