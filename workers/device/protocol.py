"""Messages between the Celery process and its device process, over a socket pair.

A message is a struct, encoded as MessagePack and tagged with its class. Each belongs to a request by its id; id 0 is
the start of the device process itself. A request is answered by exactly one `Result`, `Failed` or `Aborted`:

    Celery process                    device process
    Open, then Run, Cancel     ->
                               <-     Started, Stage, Running, Batch and Alive while it works, Finished, the answer
                               <-     Ready once the preloads are warm, DeviceStatus whenever models come or go
"""

import contextlib
import select
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from common.payloads.codec import MAX_BYTES
from common.records import Counts, Json

#: The longest message accepted: a payload and room for the rest.
_MAX_MESSAGE = MAX_BYTES + 16 * 1024 * 1024
#: Exit status of a device process whose device is lost (EX_IOERR of sysexits.h).
DEVICE_LOST = 74
#: Exit status of a device process whose engine has ended (EX_SOFTWARE).
ENGINE_DIED = 70

T = TypeVar("T")
Natural = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Effort:
    """What a chunk took, for metrics; stages of different chunks overlap."""

    tokenize: float = 0.0  #: seconds; of a runner that prepares its inputs
    forward: float = 0.0  #: seconds of running them
    encode: float = 0.0  #: seconds of encoding outcomes
    tokens: int = 0  #: run in batches that are cut by tokens, padding included

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(
            self.tokenize + other.tokenize,
            self.forward + other.forward,
            self.encode + other.encode,
            self.tokens + other.tokens,
        )


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The outcomes of a chunk, encoded."""

    payload: bytes  #: of outcomes (`common.payloads.codec`)
    counts: Counts
    seconds: float  #: of computing
    run_info: Mapping[str, Json]  #: what ran: model, commit, device, dtype, versions
    effort: Effort = Effort()


class Message(msgspec.Struct, forbid_unknown_fields=True, tag=True):
    """A message; `id` is that of its request."""

    id: Natural = 0


class Open(Message, kw_only=True):
    """The first message: how to serve."""

    policy: str  #: `ModelPolicy.encode`
    preload: str  #: task and model of each, as JSON: a path may have no UTF-8 form
    batch_sizes: dict[str, int]  #: tokens in a batch, learned by earlier processes
    prefetch: bool  #: whether to prepare the next chunk while one is computed


class Run(Message, kw_only=True):
    """A chunk to run."""

    spec: str  #: `JobSpec.encode`
    positions: list[Natural] | None  #: of the records to run; None runs all
    payload: bytes  #: of records


class Cancel(Message):
    """The chunk is no longer wanted."""


class Ready(Message):
    """The preloads are warm; requests are served."""


class DeviceStatus(Message):
    """What the device holds."""

    models: tuple[dict[str, Any], ...] = ()  #: task, model and bytes of each loaded one
    free: int | None = None  #: memory in bytes, None where unknown
    total: int | None = None
    evicted: int = 0  #: models unloaded to make room for others, so far
    load_seconds: float = 0.0  #: duration of the last load
    changed_at: float = 0.0  #: when a model was last loaded or evicted, by the monotonic clock all processes share
    fallbacks: dict[str, int] = {}  #: how often each fast path fell back to a slower one


class Started(Message):
    """The process works on this request now: it loads the model, if need be."""


class Stage(Message, kw_only=True):
    """What takes time before records run: downloads, loads; empty once that is over."""

    text: str


class Running(Message):
    """The model is loaded, records run next."""


class Batch(Message, kw_only=True):
    """These records are about to run; all batches before are done."""

    positions: list[Natural]


class Alive(Message):
    """The current batch makes progress."""


class Finished(Message):
    """The process is done with the request, but for encoding its answer."""


class Result(Message, kw_only=True):
    """The answer: outcomes."""

    result: ChunkResult
    batch_sizes: dict[str, int]  #: learned meanwhile


class Failed(Message, kw_only=True):
    """The answer: an error. With id 0: a preload failed, and the process ends."""

    error: Literal["model", "worker", "payload"]
    code: str
    message: str


class Aborted(Message):
    """The answer: it was cancelled."""


ToDevice = Open | Run | Cancel
FromDevice = Ready | DeviceStatus | Started | Stage | Running | Batch | Alive | Finished | Result | Failed | Aborted
Answer = Result | Failed | Aborted
Event = Stage | Answer  #: what the thread that waits for a request receives


class ProtocolError(ValueError):
    """Raised when bytes from the other end are not a message of this protocol."""


class SocketClosed(Exception):
    """Raised when the other end is gone. Not an `OSError`, which the work itself may raise over files and disks."""


@contextlib.contextmanager
def _closing() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise SocketClosed(str(error) or type(error).__name__) from error


class MessageSocket(Generic[T]):
    """One end of the socket pair. Any thread may send, one thread receives.

    Args:
        fd: descriptor of this end.
        received: the messages that this end accepts: `ToDevice` or `FromDevice`.
    """

    def __init__(self, fd: int, received: Any) -> None:
        self._connection: Connection[Any, Any] = Connection(fd)
        self._readable = select.poll()  # `Connection.poll` makes a selector for each call
        self._readable.register(fd, select.POLLIN)
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(received)
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            SocketClosed: the other end is gone.
        """
        data = msgspec.msgpack.encode(message)
        with self._lock, _closing():
            self._connection.send_bytes(data)

    def receive(self, timeout: float | None = None) -> T | None:
        """Return the next message, or None after `timeout` seconds without one.

        Raises:
            SocketClosed: the other end closed, or the connection broke.
            ProtocolError: the bytes are not a message that this end accepts.
        """
        with _closing():
            if timeout is not None and not self._readable.poll(timeout * 1000):
                return None
            data = self._connection.recv_bytes(_MAX_MESSAGE)
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"{len(data)} bytes that are not a message: {error}") from error

    def close(self) -> None:
        """Close this end; the other end reads an end of file."""
        with self._lock:
            self._connection.close()
