"""The server of the device process: takes chunks from the Celery process, runs one at a time, answers each.

Four threads work in a row, so that the device waits for none of them:

    socket -> receive -> _to_prefetch -> prefetch -> _to_run -> main: load, run -> _to_send -> send -> socket

* `_receive` decodes messages and cancels requests;
* `_prefetch` prepares the next chunk, if its model is loaded and the client wants it: tokenizes it, or queues it in an
  engine;
* `serve`, the main thread, loads models and runs records, and reports each batch before it runs: if the process dies,
  the Celery process knows which records to suspect;
* `_send` encodes the outcomes.
"""

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal
from weakref import ref

from common.display_text import replace_control_chars
from common.errors import Cancelled, CodedError, ModelError, PayloadError, WorkerError
from common.jobs import JobSpec
from workers.device import protocol
from workers.device.server.calibration import calibrate, warm_up
from workers.device.server.encode_chunk import OutputEncoding, encode_chunk
from workers.device.server.memory import memory_of
from workers.device.server.model_cache import LoadedModel, ModelCache
from workers.device.server.request import Prefetched, Request
from workers.device.server.run_chunk import DeviceLost, prepare_chunk, run_chunk
from workers.disk_space import DISK_FULL_ERRNOS
from workers.inference.core.device_errors import EngineDied, is_device_lost
from workers.inference.core.fallbacks import count_fallback, fallback_counts
from workers.models.resolver import ModelPolicy

logger = logging.getLogger(__name__)

#: Number of requests that a fresh process runs strictly one after the other. If the last process died of its work
#: alongside a request, the culprit is among them and can be identified.
_SERIAL_REQUESTS = 8


class DeviceServer:
    """The loop of the device process."""

    def __init__(
        self, message_socket: protocol.MessageSocket[protocol.ToDevice], device: str, opening: protocol.Open
    ) -> None:
        self._socket = message_socket
        self._device = device
        self._opening = opening
        self._models = ModelCache(device, ModelPolicy.decode(opening.policy))
        self._to_prefetch: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._to_run: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._to_send: queue.SimpleQueue[tuple[Request, Callable[[], protocol.Result]]] = queue.SimpleQueue()
        self._cancellable: dict[int, Request] = {}
        self._served = 0
        self._reported: tuple[int, list[int | None], dict[str, int]] = (0, [], {})

    def serve(self) -> None:
        """Load the preloads, then answer requests until the other end closes."""
        for work in (self._receive, self._prefetch, self._send):
            threading.Thread(target=_run_or_exit, args=[work], name=work.__name__, daemon=True).start()
        for task, model in json.loads(self._opening.preload):
            request = Request(0, JobSpec("0" * 12, task, model), self._socket)
            with self._answer_errors(request):
                self._preload(request)
            if request.is_answered:  # it failed
                return
        self._socket.send(protocol.Ready())
        while True:
            request = self._to_run.get()
            with self._answer_errors(request):
                self._run(request)
            self._served += 1
            self._cancellable.pop(request.id, None)
            self._send_status()
            self._socket.send(protocol.Finished(request.id))

    @property
    def _is_serial(self) -> bool:
        return self._served < _SERIAL_REQUESTS

    def _preload(self, request: Request) -> None:
        """Load and warm the model of a request without records."""
        begun = time.perf_counter()
        request.start()
        loaded, *_ = self._models.get(request.spec, request)
        request.batch([])
        speed = warm_up(loaded, request)
        self._calibrate(loaded, request)
        request.stage("")
        self._send_status()
        rate = f", {speed:,.0f} records/s" if speed else ""
        logger.info("%s: loaded and warm in %.1f s%s", loaded.title, time.perf_counter() - begun, rate)

    def _run(self, request: Request) -> None:
        request.start()
        try:
            loaded, runner, params = self._models.get(request.spec, request)
        finally:
            self._send_status()
        self._calibrate(loaded, request)
        outputs = OutputEncoding.of(runner, request.spec, params)
        request.start_running()
        inputs = request.prefetched.inputs_for(loaded.runner) if request.prefetched else None
        budget, prepare_before = loaded.runner.budget, runner.prepare_seconds
        tokens_before = budget.tokens_run if budget else 0
        begun = time.perf_counter()
        outcomes = run_chunk(runner, request.records, params, self._device, request, inputs)
        seconds = time.perf_counter() - begun
        prepare_seconds = runner.prepare_seconds - prepare_before
        effort = protocol.Effort(
            tokenize=prepare_seconds + (inputs.prepare_seconds if inputs else 0.0),
            forward=seconds - prepare_seconds,
            tokens=budget.tokens_run - tokens_before if budget else 0,
        )
        run_info = loaded.run_info()
        batch_sizes = {loaded.digest: budget.tokens} if budget else {}

        # It must not refer to the model: what waits to be sent would keep it in memory when it is evicted.
        def encode() -> protocol.Result:
            begun = time.perf_counter()
            payload, counts = encode_chunk(request.records, outcomes, outputs)
            whole = effort + protocol.Effort(encode=time.perf_counter() - begun)
            result = protocol.ChunkResult(payload, counts, seconds, run_info, whole)
            return protocol.Result(request.id, result=result, batch_sizes=batch_sizes)

        if self._is_serial:
            request.answer(encode())
        else:
            self._to_send.put((request, encode))

    def _calibrate(self, loaded: LoadedModel, request: Request) -> None:
        calibrate(loaded, self._opening.batch_sizes.get(loaded.digest), request)

    def _send_status(self) -> None:
        """Report what the device holds, if that has changed."""
        models, fallbacks = self._models, fallback_counts()
        state = models.changes, models.batch_tokens(), fallbacks
        if state == self._reported:
            return
        self._reported = state
        free, total = memory_of(self._device)
        self._socket.send(
            protocol.DeviceStatus(
                models=tuple(models.summaries()),
                free=free,
                total=total,
                evicted=models.evicted,
                load_seconds=models.load_seconds,
                changed_at=models.changed_at,
                fallbacks=fallbacks,
            )
        )

    # The other threads

    def _receive(self) -> None:
        try:
            while message := self._socket.receive():
                match message:
                    case protocol.Run():
                        self._accept(message)
                    case protocol.Cancel():
                        if request := self._cancellable.get(message.id):
                            request.cancel()
                    case protocol.Open():
                        raise protocol.ProtocolError("a second opening")
        except protocol.ProtocolError:
            logger.exception("the client violated the protocol")
            os._exit(1)

    def _accept(self, message: protocol.Run) -> None:
        try:
            request = Request.decode(message, self._socket)
        except protocol.ProtocolError:
            raise
        except (ValueError, PayloadError, MemoryError) as error:
            text = f"{type(error).__name__}: {error}"
            self._socket.send(
                protocol.Failed(
                    id=message.id, error="payload", code="broken_payload", message=replace_control_chars(text)
                )
            )
            return
        self._cancellable[request.id] = request
        self._to_prefetch.put(request)

    def _prefetch(self) -> None:
        while True:
            request = self._to_prefetch.get()
            if self._opening.prefetch and not self._is_serial:
                request.prefetched = self._prepare(request)
            self._to_run.put(request)

    def _prepare(self, request: Request) -> Prefetched | None:
        try:
            with self._models.pin(request.spec) as found:
                if found is None:
                    return None
                loaded, runner, params = found
                return Prefetched(ref(loaded.runner), prepare_chunk(runner, request.records, params))
        except CodedError:  # the main thread meets it again, and answers
            return None
        except Exception as error:  # noqa: BLE001 - so is this, but it may be a bug: counted and logged
            count_fallback("prefetch", error)
            return None

    def _send(self) -> None:
        while True:
            request, encode = self._to_send.get()
            with self._answer_errors(request):
                request.answer(encode())

    @contextlib.contextmanager
    def _answer_errors(self, request: Request) -> Iterator[None]:
        """Answer the request with any error of the block."""
        try:
            yield
        except Cancelled:
            request.answer(protocol.Aborted(request.id))
        except CodedError as error:
            request.answer(_failed(request.id, error))
        except protocol.SocketClosed:  # nobody is left to answer
            raise
        except Exception as error:  # the last boundary: the process and the other requests go on
            if isinstance(error, DeviceLost) or is_device_lost(error):
                _exit_device_lost(error)
            logger.exception("job %s: unexpected error in the device process", request.spec.id)
            full = isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
            text = f"{type(error).__name__}: {error}"[:2000]
            coded = WorkerError("disk_full", text) if full else WorkerError("device_fault", text)
            request.answer(_failed(request.id, coded))


def serve(fd: int, device: str) -> None:
    """Answer requests at the socket `fd` until the other end closes.

    Raises:
        ProtocolError: the first message is not `Open`.
    """
    message_socket: protocol.MessageSocket[protocol.ToDevice] = protocol.MessageSocket(fd, protocol.ToDevice)
    with contextlib.suppress(protocol.SocketClosed):
        opening = message_socket.receive()
        if not isinstance(opening, protocol.Open):
            raise protocol.ProtocolError("the first message must be Open")
        DeviceServer(message_socket, device, opening).serve()


def _failed(id_: int, error: CodedError) -> protocol.Failed:
    kind: Literal["model", "worker"] = "model" if isinstance(error, ModelError) else "worker"
    return protocol.Failed(id=id_, error=kind, code=error.code, message=replace_control_chars(error.message))


def _run_or_exit(work: Callable[[], None]) -> None:
    """Run a thread that never ends by itself; without it no request is answered, so the process ends with it."""
    try:
        work()
    except protocol.SocketClosed:
        os._exit(0)
    except BaseException:  # a panic of the tokenizers library is no Exception
        logger.exception("the device process cannot continue")
        logging.shutdown()
        os._exit(1)


def _exit_device_lost(error: Exception) -> None:
    """End the process: its context on the device is ruined, or its engine dead; only a fresh process gets a new one."""
    logger.error("the device is lost: %s", error)
    logging.shutdown()
    os._exit(protocol.ENGINE_DIED if isinstance(error.__cause__, EngineDied) else protocol.DEVICE_LOST)
