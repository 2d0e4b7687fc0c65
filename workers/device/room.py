"""The room itself: takes requests from the Celery process, computes one at a time, answers each.

A request goes from thread to thread, so that the device waits for none of them: one listens, opens payloads and takes
back what was given up; one does of the next chunk what needs no device; the main one computes; the last encodes the
outcomes. The main one says before each batch which records it is about to run, so that the death of the process can be
laid at the right door.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from weakref import ref

from common.errors import CodedError, ModelError, PayloadError, WorkerError
from common.values import JobSpec, Json
from workers.device.chunk import Computed, DeviceLost, prepare_chunk, run_chunk
from workers.device.fitting import fit
from workers.device.memory import memory_of
from workers.device.models import Models
from workers.device.protocol import DEVICE_LOST, Channel, Message, ProtocolError
from workers.device.turns import Ahead, Turn, open_turn
from workers.device.warmup import warm_up
from workers.resolver import ModelPolicy
from workers.runners.base import Cancelled, Runner

logger = logging.getLogger(__name__)

#: So many requests a fresh process takes one after the other: should the last one have died of what it did ahead, the
#: chunk that it did it for is among them, and is found out.
_CAREFUL = 8


class Room:
    """The loop of the device process."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel = channel
        self._device = device
        self._arrived: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._waiting: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._computed: queue.SimpleQueue[tuple[Turn, dict[str, Json], Computed]] = queue.SimpleQueue()
        self._worked = 0  #: requests
        self._looks_ahead: bool
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
        self._looks_ahead = opening.body["looks_ahead"]
        for work in (self._listen, self._look_ahead, self._answer):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        if not self._preload(opening.body["preload"]):
            return
        self._channel.send(Message("ready"))
        while True:
            turn = self._waiting.get()
            self._work(turn)
            self._worked += 1
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

    def _look_ahead(self) -> None:
        """Begin with requests while the main thread computes others, and pass them on to it in their order."""
        while True:
            self._pass_on(self._arrived.get())

    def _pass_on(self, turn: Turn) -> None:
        if self._looks_ahead and self._worked >= _CAREFUL and turn.spec.format is None:
            turn.ahead = self._prepared(turn)
        self._waiting.put(turn)

    def _prepared(self, turn: Turn) -> Ahead | None:
        try:
            with self._models.keeping(turn.spec) as found:
                if found is None:
                    return None
                loaded, params = found
                return Ahead(ref(loaded.runner), prepare_chunk(loaded.runner, turn.records, params))
        except Exception:  # whatever it is, the main thread meets it again, and answers
            logger.debug("job %s: nothing is done ahead", turn.spec.id, exc_info=True)
            return None

    def _work(self, turn: Turn) -> None:
        """Compute one request and have it answered, whatever happens."""
        with self._faults(turn):
            self._computed.put((turn, *self._compute(turn)))

    def _answer(self) -> None:
        """Encode and send what was computed."""
        while True:
            self._send_result(*self._computed.get())

    def _send_result(self, turn: Turn, body: dict[str, Json], computed: Computed) -> None:
        with self._faults(turn):
            answer = computed.encode()
            body |= {"counts": list(asdict(answer.counts).values()), "seconds": answer.seconds}
            turn.answer(Message("result", turn.id, body, answer.payload))

    @contextlib.contextmanager
    def _faults(self, turn: Turn) -> Iterator[None]:
        """Answer with what goes wrong."""
        try:
            yield
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

    def _compute(self, turn: Turn) -> tuple[dict[str, Json], Computed]:
        """Return what came of a request, and what is said of it besides."""
        turn.take_up()
        changes = self._models.changes
        try:
            loaded, params = self._models.get(turn.spec, turn.stage)
        finally:
            if self._models.changes != changes:
                self._send_status()
        fit(loaded, self._budgets.get(loaded.digest), turn)
        turn.begin()
        runner = self._runner(loaded.runner, turn.spec)
        inputs = turn.ahead.by(runner) if turn.ahead else None
        computed = run_chunk(runner, turn.records, params, self._device, turn, inputs)
        budget = loaded.runner.budget
        return {"facts": loaded.facts(), "budgets": {loaded.digest: budget.tokens} if budget else {}}, computed

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
            turn = open_turn(message, self._channel)
        except ProtocolError:
            raise
        except (ValueError, PayloadError, MemoryError) as error:
            body = {"error": "payload", "code": "bad_payload", "message": f"{type(error).__name__}: {error}"}
            self._channel.send(Message("failed", message.id, body))
            return
        self._turns[turn.id] = turn
        self._arrived.put(turn)


def _described(error: CodedError) -> dict[str, str]:
    kind = "model" if isinstance(error, ModelError) else "worker"
    return {"error": kind, "code": error.code, "message": error.message}


def _end(error: DeviceLost) -> None:
    """End the process: its hold on the device is ruined, and only a fresh one can get it back."""
    logger.error("the device is lost: %s", error)
    logging.shutdown()
    os._exit(DEVICE_LOST)
