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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from weakref import ref

from common.errors import Cancelled, CodedError, ModelError, PayloadError, WorkerError
from common.jobs import JobSpec
from common.records import Json
from workers.device.protocol import DEVICE_LOST, Channel, ChannelClosed, Message, ProtocolError
from workers.device.server.calibration import calibrate
from workers.device.server.memory import memory_of
from workers.device.server.model_cache import ModelCache
from workers.device.server.request import Prefetched, Request, decode_request
from workers.device.server.run_chunk import Computed, DeviceLost, prepare_chunk, run_chunk
from workers.device.server.warmup import warm_up
from workers.disk_space import DISK_FULL_ERRNOS
from workers.inference.core.device_errors import is_device_lost
from workers.inference.core.runner import Runner
from workers.models.resolver import ModelPolicy

logger = logging.getLogger(__name__)

#: So many requests a fresh process takes wholly one after the other. Should the last process have died of what it did
#: beside a request, for the next one or for the last, then the one at fault is among them, and is found out.
_SERIAL_REQUESTS = 8


def serve(channel: Channel, device: str) -> None:
    """Answer requests until the other end closes; then the process ends.

    Raises:
        ProtocolError: the other end does not begin by opening the room.
    """
    with contextlib.suppress(ChannelClosed):
        opening = channel.receive()
        if opening is None or opening.kind != "open":
            raise ProtocolError("the first message must open the room")
        DeviceServer(channel, device, opening.body).serve()


class DeviceServer:
    """The loop of the device process; `opening` is the body of the message of that kind."""

    def __init__(self, channel: Channel, device: str, opening: Mapping[str, Any]) -> None:
        policy = ModelPolicy.decode(opening["policy"])
        self._channel = channel
        self._device = device
        self._models = ModelCache(device, policy)
        self._most_new_tokens = policy.max_new_tokens
        self._budgets: Mapping[str, int] = opening["budgets"]  #: tokens in a batch, learnt by earlier processes
        self._prefetch: bool = opening["prefetch"]
        self._preloads: Sequence[Sequence[str | None]] = opening["preload"]
        self._to_prefetch: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._to_run: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._to_send: queue.SimpleQueue[tuple[Request, dict[str, Json], Computed]] = queue.SimpleQueue()
        self._requests: dict[int, Request] = {}  #: those that may be given up
        self._requests_done = 0

    def serve(self) -> None:
        """Preload, say that the room is open, and answer requests."""
        for work in (self._receive_requests, self._prefetch_requests, self._send_results):
            threading.Thread(target=_run_or_exit, args=[work], name=work.__name__, daemon=True).start()
        if not self._preload():
            return
        self._channel.send(Message("ready"))
        while True:
            request = self._to_run.get()
            self._run_request(request)
            self._requests_done += 1
            self._requests.pop(request.id, None)
            self._channel.send(Message("over", request.id))

    def _preload(self) -> bool:
        for task, model in self._preloads:
            request = Request(0, JobSpec("0" * 12, str(task), model), self._channel)
            try:
                begun = time.perf_counter()
                request.start_loading()
                loaded, _ = self._models.get(request.spec, request.stage)
                request.batch([])
                speed = warm_up(loaded, request)
                calibrate(loaded, self._budgets.get(loaded.digest), request)
                request.stage("")
            except (ModelError, WorkerError) as error:
                self._channel.send(Message("refused", 0, _error_body(error)))
                return False
            except ChannelClosed:
                raise
            except DeviceLost as error:
                _exit_device_lost(error)
            except Exception as error:  # the last boundary: whatever it is, the worker is told
                logger.exception("%s with %s cannot be preloaded", task, model or "its default model")
                self._channel.send(Message("refused", 0, _error_body(_to_worker_error(error))))
                return False
            self._send_status()
            seconds = time.perf_counter() - begun
            rate = f", {speed:,.0f} records/s" if speed else ""
            logger.info("%s: loaded and warm in %.1f s%s", loaded.title, seconds, rate)
        return True

    def _prefetch_requests(self) -> None:
        """Begin with requests while the main thread computes others, and pass them on to it in their order."""
        while True:
            self._prefetch_one(self._to_prefetch.get())

    def _prefetch_one(self, request: Request) -> None:
        if self._prefetch and not self._is_serial and request.spec.format is None:
            request.ahead = self._prefetch_request(request)
        self._to_run.put(request)

    def _prefetch_request(self, request: Request) -> Prefetched | None:
        try:
            with self._models.pin(request.spec) as found:
                if found is None:
                    return None
                loaded, params = found
                return Prefetched(ref(loaded.runner), prepare_chunk(loaded.runner, request.records, params))
        except Exception:  # whatever it is, the main thread meets it again, and answers
            logger.debug("job %s: nothing is done ahead", request.spec.id, exc_info=True)
            return None

    def _run_request(self, request: Request) -> None:
        """Compute one request and have it answered, whatever happens."""
        with self._reply_errors(request):
            body, computed = self._compute(request)
            if self._is_serial:
                self._send_result(request, body, computed)
            else:
                self._to_send.put((request, body, computed))

    @property
    def _is_serial(self) -> bool:
        return self._requests_done < _SERIAL_REQUESTS

    def _send_results(self) -> None:
        """Encode and send what was computed."""
        while True:
            self._send_result(*self._to_send.get())

    def _send_result(self, request: Request, body: dict[str, Json], computed: Computed) -> None:
        with self._reply_errors(request):
            answer = computed.encode()
            body |= {"counts": list(asdict(answer.counts).values()), "seconds": answer.seconds}
            request.answer(Message("result", request.id, body, answer.payload))

    @contextlib.contextmanager
    def _reply_errors(self, request: Request) -> Iterator[None]:
        """Answer with what goes wrong."""
        try:
            yield
        except Cancelled:
            request.answer(Message("cancelled", request.id))
        except DeviceLost as error:
            _exit_device_lost(error)
        except CodedError as error:
            request.answer(Message("failed", request.id, _error_body(error)))
        except ChannelClosed:  # nobody is left to answer
            raise
        except Exception as error:  # the last boundary: the process and the other requests go on
            if is_device_lost(error):
                _exit_device_lost(error)
            logger.exception("job %s: a fault of the device process", request.spec.id)
            request.answer(Message("failed", request.id, _error_body(_to_worker_error(error))))

    def _compute(self, request: Request) -> tuple[dict[str, Json], Computed]:
        """Return what came of a request, and what is said of it besides."""
        request.start_loading()
        changes = self._models.changes
        try:
            loaded, params = self._models.get(request.spec, request.stage)
        finally:
            if self._models.changes != changes:
                self._send_status()
        calibrate(loaded, self._budgets.get(loaded.digest), request)
        request.start_running()
        runner = self._runner(loaded.runner, request.spec)
        inputs = request.ahead.by(runner) if request.ahead else None
        computed = run_chunk(runner, request.records, params, self._device, request, inputs)
        budget = loaded.runner.budget
        return {"facts": loaded.run_info(), "budgets": {loaded.digest: budget.tokens} if budget else {}}, computed

    def _runner(self, runner: Runner, spec: JobSpec) -> Runner:
        """Return what runs the job's records: a runner, or what answers requests by it."""
        if spec.format is None:
            return runner
        from workers.inference.tasks.openai_requests import (
            wrap_openai_runner,  # with torch, which a runner has loaded by now
        )

        return wrap_openai_runner(spec, runner, self._most_new_tokens)

    def _send_status(self) -> None:
        free, total = memory_of(self._device)
        models = self._models
        body: dict[str, Json] = {"models": models.summaries(), "free": free, "total": total}
        body |= {"evicted": models.evicted, "load_seconds": models.load_seconds, "since": time.monotonic()}
        self._channel.send(Message("status", 0, body))

    def _receive_requests(self) -> None:
        """Take requests until the other end closes: then end the process, whatever the main thread computes."""
        try:
            while message := self._channel.receive():
                self._dispatch(message)
        except ChannelClosed:
            os._exit(0)
        except ProtocolError:
            logger.exception("the other end does not speak this protocol")
            os._exit(1)

    def _dispatch(self, message: Message) -> None:
        if message.kind == "run":
            self._accept_run(message)
        elif message.kind == "cancel":
            request = self._requests.get(message.id)
            if request is not None:
                request.cancel()
        else:
            raise ProtocolError(f"unexpected message {message.kind}")

    def _accept_run(self, message: Message) -> None:
        try:
            request = decode_request(message, self._channel)
        except ProtocolError:
            raise
        except (ValueError, PayloadError, MemoryError) as error:
            body = {"error": "payload", "code": "bad_payload", "message": f"{type(error).__name__}: {error}"}
            self._channel.send(Message("failed", message.id, body))
            return
        self._requests[request.id] = request
        self._to_prefetch.put(request)


def _error_body(error: CodedError) -> dict[str, str]:
    kind = "model" if isinstance(error, ModelError) else "worker"
    return {"error": kind, "code": error.code, "message": error.message}


def _to_worker_error(error: Exception) -> WorkerError:
    """Return what nobody foresaw as an error with a code. A full disk can meet any work."""
    full = isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
    return WorkerError("disk_full" if full else "device_fault", f"{type(error).__name__}: {error}"[:2000])


def _run_or_exit(work: Callable[[], None]) -> None:
    """Do what is never over: without it nobody would be answered, and the process had better end."""
    try:
        work()
    except ChannelClosed:
        os._exit(0)
    except BaseException:  # a panic of the tokenizers library is no Exception
        logger.exception("the device process cannot go on")
        logging.shutdown()
        os._exit(1)


def _exit_device_lost(error: Exception) -> None:
    """End the process: its hold on the device is ruined, and only a fresh one can get it back."""
    logger.error("the device is lost: %s", error)
    logging.shutdown()
    os._exit(DEVICE_LOST)
