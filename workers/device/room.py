"""The room itself: takes requests from the Celery process, computes one at a time, answers each.

Two threads: one listens, opens the next payloads and takes back what was given up; the main one computes. Says
before each batch which records it is about to run, so that its death can be laid at the right door.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from common.errors import CodedError, ModelError, PayloadError, WorkerError
from common.payloads.encoding import decode_records
from common.values import Failure, JobSpec, Json, Record
from workers.device.chunk import DeviceLost, run_chunk
from workers.device.fitting import fit
from workers.device.memory import memory_of
from workers.device.models import Models
from workers.device.protocol import DEVICE_LOST, Channel, Message, ProtocolError, integers
from workers.device.warmup import warm_up
from workers.resolver import ModelPolicy
from workers.runners.base import Cancelled, Runner

logger = logging.getLogger(__name__)

#: Signs of life within a batch are sent at most this often, in seconds.
_TICK = 1.0


@dataclass(slots=True, eq=False)
class Turn:
    """One request on its way through the room; its watch as well."""

    id: int
    spec: JobSpec
    channel: Channel
    records: dict[int, Record] = field(default_factory=dict)  #: by position in the chunk, in the order to answer
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: bool = False
    _given_up: bool = False
    _answered: bool = False
    _ticked: float = 0.0

    def give_up(self) -> None:
        """Answer `cancelled`, now if nothing runs, else as soon as the runner asks its watch."""
        with self._lock:
            self._given_up = True
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

    def take_up(self) -> None:
        """Say that the process is at this request now. Raises `Cancelled`."""
        self._check()
        self.channel.send(Message("begun", self.id))

    def stage(self, text: str) -> None:
        """Say what takes time before anything runs; empty once it is over. Raises `Cancelled`."""
        self._check()
        self.channel.send(Message("stage", self.id, {"text": text}))

    def begin(self) -> None:
        """From here on, giving up waits for the runner, and silence counts. Raises `Cancelled`."""
        with self._lock:
            self._running = not self._given_up
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
        if time.monotonic() - self._ticked >= _TICK:
            self._ticked = time.monotonic()
            self.channel.send(Message("tick", self.id))

    def _check(self) -> None:
        if self._given_up:
            raise Cancelled


class Room:
    """The loop of the device process."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel = channel
        self._device = device
        self._waiting: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._turns: dict[int, Turn] = {}
        self._models: Models
        self._most_new_tokens: int
        self._budgets: Mapping[str, int]  #: tokens in a batch, learnt by earlier processes

    def serve(self) -> None:
        """Open, say so, and answer requests until the other end closes; then the process ends."""
        try:
            opening = self._channel.receive()
        except (EOFError, OSError):
            return
        if opening is None or opening.kind != "open":
            raise ProtocolError("the first message must open the room")
        policy = ModelPolicy.decode(opening.body["policy"])
        self._most_new_tokens = policy.max_new_tokens
        self._models = Models(self._device, policy)
        self._budgets = opening.body["budgets"]
        threading.Thread(target=self._listen, name="listener", daemon=True).start()
        if not self._preload(opening.body["preload"]):
            return
        self._channel.send(Message("ready"))
        while True:
            turn = self._waiting.get()
            self._work(turn)
            self._turns.pop(turn.id, None)
            with contextlib.suppress(OSError):  # the other end is gone: the listener ends the process
                self._channel.send(Message("over", turn.id))

    def _preload(self, wanted: Sequence[Sequence[str | None]]) -> bool:
        for task, model in wanted:
            turn = Turn(0, JobSpec("0" * 12, str(task), model), self._channel)
            try:
                begun = time.perf_counter()
                turn.take_up()
                loaded, _ = self._models.get(turn.spec, turn.stage)
                turn.batch([])
                speed = warm_up(loaded, turn)
                fit(loaded, self._budgets.get(loaded.digest), turn)
                turn.stage("")
            except (ModelError, WorkerError) as error:
                self._channel.send(Message("refused", 0, _described(error)))
                return False
            except DeviceLost as error:
                _end(error)
            self._send_status()
            seconds = time.perf_counter() - begun
            rate = f", {speed:,.0f} records/s" if speed else ""
            logger.info("%s: loaded and warm in %.1f s%s", loaded.title, seconds, rate)
        return True

    def _work(self, turn: Turn) -> None:
        """Compute one request and answer it, whatever happens."""
        try:
            turn.answer(self._result(turn))
        except Cancelled:
            turn.answer(Message("cancelled", turn.id))
        except DeviceLost as error:
            _end(error)
        except CodedError as error:
            turn.answer(Message("failed", turn.id, _described(error)))
        except OSError:  # the other end is gone: the listener ends the process
            logger.debug("nobody is left to answer", exc_info=True)
        except Exception as error:  # the last boundary: the process and the other requests go on
            logger.exception("job %s: a fault of the device process", turn.spec.id)
            fault = WorkerError("device_fault", f"{type(error).__name__}: {error}"[:2000])
            turn.answer(Message("failed", turn.id, _described(fault)))

    def _result(self, turn: Turn) -> Message:
        turn.take_up()
        changes = self._models.changes
        try:
            loaded, params = self._models.get(turn.spec, turn.stage)
        finally:
            if self._models.changes != changes:
                self._send_status()
        fit(loaded, self._budgets.get(loaded.digest), turn)
        turn.begin()
        answer = run_chunk(self._runner(loaded.runner, turn.spec), turn.records, params, self._device, turn)
        body = {
            "counts": list(asdict(answer.counts).values()),
            "seconds": answer.seconds,
            "facts": loaded.facts(),
            "budgets": {loaded.digest: loaded.runner.budget.tokens} if loaded.runner.budget else {},
        }
        return Message("result", turn.id, body, answer.payload)

    def _runner(self, runner: Runner, spec: JobSpec) -> Runner:
        """Return what runs the job's records: a runner, or what answers requests by it."""
        if spec.format is None:
            return runner
        from workers.runners.requests import over_requests  # with torch, which a runner has loaded by now

        return over_requests(spec, runner, self._most_new_tokens)

    def _send_status(self) -> None:
        free, total = memory_of(self._device)
        models = self._models
        body: dict[str, Json] = {"models": models.summaries(), "free": free, "total": total}
        body |= {"evicted": models.evicted, "load_seconds": models.load_seconds, "since": time.monotonic()}
        self._channel.send(Message("status", 0, body))

    def _listen(self) -> None:
        """Take requests until the other end closes: then end the process, whatever the main thread computes."""
        try:
            while message := self._channel.receive():
                self._take(message)
        except (EOFError, OSError):
            os._exit(0)
        except ProtocolError:
            logger.exception("the other end does not speak this protocol")
            os._exit(1)

    def _take(self, message: Message) -> None:
        if message.kind == "run":
            self._take_run(message)
        elif message.kind == "cancel":
            turn = self._turns.get(message.id)
            if turn is not None:
                turn.give_up()
        else:
            raise ProtocolError(f"unexpected message {message.kind}")

    def _take_run(self, message: Message) -> None:
        try:
            turn = _open_turn(message, self._channel)
        except ProtocolError:
            raise
        except (ValueError, PayloadError, MemoryError) as error:
            body = {"error": "payload", "code": "bad_payload", "message": f"{type(error).__name__}: {error}"}
            self._channel.send(Message("failed", message.id, body))
            return
        self._turns[turn.id] = turn
        self._waiting.put(turn)


def _open_turn(message: Message, channel: Channel) -> Turn:
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
    return Turn(message.id, spec, channel, chosen)


def _described(error: CodedError) -> dict[str, str]:
    kind = "model" if isinstance(error, ModelError) else "worker"
    return {"error": kind, "code": error.code, "message": error.message}


def _end(error: DeviceLost) -> None:
    """End the process: its hold on the device is ruined, and only a fresh one can get it back."""
    logger.error("the device is lost: %s", error)
    logging.shutdown()
    os._exit(DEVICE_LOST)
