"""A request to the device process: its records, and the connection to the client that waits for its answer."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import ref

from common.display_text import replace_control_chars
from common.errors import Cancelled
from common.jobs import JobSpec
from common.payloads.codec import decode_records
from common.records import Record
from common.reporting import Reporter
from workers.device import protocol
from workers.device.server.run_chunk import ChunkInputs
from workers.inference.core.runner import Runner

#: Signs of life within a batch are sent at most this often, in seconds.
_ALIVE_SECONDS = 1.0


class Prefetched(NamedTuple):
    """What was prepared of a request in advance. It holds no model that is evicted meanwhile."""

    runner: "ref[Runner]"  #: of the model
    inputs: ChunkInputs

    def inputs_for(self, runner: Runner) -> ChunkInputs | None:
        """Return the inputs, if they were prepared with this model."""
        return self.inputs if self.runner() is runner else None


@dataclass(eq=False)
class Request(Reporter):
    """A chunk to run. It is the runner's monitor and the loader's reporter as well."""

    id: int
    spec: JobSpec
    message_socket: protocol.MessageSocket[protocol.ToDevice]
    records: dict[int, Record] = field(default_factory=dict)  #: by position in the chunk, in the order of the answer
    prefetched: Prefetched | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: bool = False
    _cancelled: bool = False
    _answered: bool = False
    _alive_at: float = 0.0

    @classmethod
    def decode(cls, message: protocol.Run, message_socket: protocol.MessageSocket[protocol.ToDevice]) -> "Request":
        """Return the request of a message.

        Raises:
            ProtocolError: it names a position that the chunk does not have.
            PayloadError: its payload is broken.
            ValueError: its job is broken.
        """
        records = decode_records(message.payload)
        positions = range(len(records)) if message.positions is None else message.positions
        if any(position >= len(records) for position in positions):
            raise protocol.ProtocolError(f"a position beyond the {len(records)} records of the chunk")
        chosen = {position: records[position] for position in positions}
        return cls(message.id, JobSpec.decode(message.spec), message_socket, chosen)

    @property
    def is_answered(self) -> bool:
        """Whether the answer was sent."""
        return self._answered

    def cancel(self) -> None:
        """Answer `Aborted`: now if nothing runs, else as soon as the runner reports to its monitor."""
        with self._lock:
            self._cancelled = True
            if self._running:
                return
        self.answer(protocol.Aborted(self.id))

    def answer(self, message: protocol.Answer) -> None:
        """Send the answer, unless there was one already."""
        with self._lock:
            if self._answered:
                return
            self._answered = True
        self.message_socket.send(message)

    def start(self) -> None:
        """Report that the process works on this request now. Raises `Cancelled`."""
        self._check()
        self.message_socket.send(protocol.Started(self.id))

    def stage(self, text: str) -> None:
        """Report what takes time before records run; empty once that is over. Raises `Cancelled`."""
        self._check()
        self.message_socket.send(protocol.Stage(id=self.id, text=replace_control_chars(text)))

    def start_running(self) -> None:
        """Report that records run next. Raises `Cancelled`.

        From here on a cancel waits for the runner, and silence counts as a hang.
        """
        with self._lock:
            self._running = not self._cancelled
        self._check()
        self.message_socket.send(protocol.Running(self.id))

    def batch(self, positions: Sequence[int]) -> None:
        """Report which records are about to run. Raises `Cancelled`."""
        self._check()
        self._alive_at = time.monotonic()
        self.message_socket.send(protocol.Batch(id=self.id, positions=list(positions)))

    def tick(self) -> None:
        """Give a sign of life, now and then. Raises `Cancelled`."""
        self._check()
        if time.monotonic() - self._alive_at >= _ALIVE_SECONDS:
            self._alive_at = time.monotonic()
            self.message_socket.send(protocol.Alive(self.id))

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled
