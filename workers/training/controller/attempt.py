"""One attempt at a train chunk: the launches it takes, what is heard from them, and the finished model's way out.

Processes that die are started again from the last whole checkpoint; after so many deaths without a step forward the
job fails. Never imports torch.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import ModelError, PayloadError, StorageError, UsageError, WorkerError
from common.gpus import find_gpus
from common.jobs import Job
from common.models.checkpoints import drop_halves, latest_whole, steps_of
from common.models.registry import ModelsStore
from common.models.registry_location import open_store, store_address
from common.payloads.codec import count, decode_records, encode_outcomes
from common.queue.jobs import Store
from common.records import JobSpec, Json, Outcome
from common.settings import Settings
from common.sockets import socket_directory
from common.training.options import LABEL_KINDS, Training
from workers.device.client.client import ChunkResult
from workers.inference.core.runner import Cancelled
from workers.leases import HeldLease
from workers.models.resolver import ModelPolicy, resolve
from workers.training.controller.launch import Launch
from workers.training.controller.uploads import LOOK, Uploads, add_model, beside
from workers.training.run_config import Order

logger = logging.getLogger(__name__)

#: The sets of examples that a train chunk refers to.
PARTS = ("train", "eval")
#: Deaths of the training processes without a step forward after which the job fails.
DEATHS = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """One train chunk in hand."""

    job: Job
    held: HeldLease
    stopping: threading.Event  #: the worker is stopping
    tell: Callable[[Mapping[str, Json]], None]  #: gets the job's progress
    on_checkpoint: Callable[[int], None]  #: gets the steps of each checkpoint that outlives this worker

    @property
    def attempt(self) -> str:
        """The name of this attempt, which no other has: it names its directories."""
        lease = self.held.lease
        return f"{lease.round}-{lease.serial}-{lease.holder[-8:]}"


class Attempt:
    """The life of one turn: the launches it takes, and what is known of them."""

    def __init__(self, turn: Turn, settings: Settings, store: Store, scratch: Path) -> None:
        self._turn = turn
        self._settings = settings
        self._payloads = store.payloads(turn.job.spec)
        self._scratch = scratch
        self._models: ModelsStore = open_store(store_address(settings), settings.model_cache)
        self._work = self._models.work_directory(turn.job.id, turn.attempt)
        self._uploads = Uploads(self._models, turn.job.id, turn.attempt, turn.on_checkpoint)
        self._progress: dict[str, Json] = {"notes": []}
        self._result: dict[str, Json] | None = None
        self._out_of_memory = False

    def go(self) -> ChunkResult:
        """Return what came of the chunk.

        Raises:
            Cancelled: the turn was given up, or the worker is stopping.
            ModelError: the job cannot be done.
            WorkerError: this worker cannot do it.
            StorageError: the model store cannot be reached.
            UsageError: the model store cannot be used.
        """
        begun = time.monotonic()
        self._stage("preparing")
        with suppress(OSError, StorageError, UsageError):  # the room it would save is not worth the job
            beside(lambda: self._models.tidy(self._turn.job.id), self._check_wanted)
        record_id, order = self._order()
        deaths, furthest = 0, -1
        while self._result is None:
            checkpoint = latest_whole(beside(self._earlier_work, self._check_wanted))
            steps = steps_of(checkpoint) if checkpoint else 0
            deaths, furthest = (0, steps) if steps > furthest else (deaths, furthest)
            order = replace(order, checkpoint=str(checkpoint) if checkpoint else None)
            if checkpoint:
                self._progress["step"] = steps
                self._note(f"Going on from the checkpoint at step {steps:,}.")
            self._stage("starting the training processes")
            words = self._launch(order)
            if self._out_of_memory:
                order = self._halved(order)
            elif self._result is None:
                deaths += 1
                logger.warning("job %s: its training processes died: %s", self._turn.job.id, words)
                if deaths >= DEATHS:
                    message = f"The training processes died {deaths} times without a step forward: {words}"
                    raise ModelError("training_died", message)
        return self._finish(record_id, self._result, time.monotonic() - begun)

    def _order(self) -> tuple[Json, Order]:
        job, settings = self._turn.job, self._settings
        training, (record_id, parts) = _options(job.spec), self._train_record()
        policy = ModelPolicy.of(settings)
        resolved = resolve(job.spec.model, job.spec.revision, job.spec.task, policy, self._stage)
        gpus = [] if settings.device == "cpu" else find_gpus()
        processes = _processes(training, len(gpus))
        return record_id, Order(
            spec=job.spec.encode(),
            model=str(resolved.path),
            model_facts={"model": resolved.model, "commit": resolved.commit},
            work=str(self._work),
            socket="",
            examples={part: self._write_examples(part, chunks) for part, chunks in parts.items()},
            checkpoint=None,
            checkpoint_seconds=settings.checkpoint,
            cuda=bool(gpus),
            processes=processes,
            batch_size=training.batch_size,
            gradient_accumulation=training.gradient_accumulation,
            allow_pickle=policy.allow_pickle,
            allow_remote_code=policy.allow_remote_code,
        )

    def _train_record(self) -> tuple[Json, dict[str, int]]:
        """Return the id of the one record of the chunk, and how many payloads of examples it refers to."""
        payload = self._payloads.records(self._turn.held.lease.chunk)
        records = decode_records(payload) if payload is not None else []
        parts = records[0].input if len(records) == 1 else None
        if not isinstance(parts, dict) or not all(isinstance(parts.get(part), int) for part in PARTS):
            raise PayloadError("it does not say where its examples are")
        return records[0].id, {part: parts[part] for part in PARTS}

    def _write_examples(self, part: str, chunks: int) -> list[str]:
        files = []
        for number in range(chunks):
            payload = self._payloads.examples(part, number)
            if payload is None:
                raise PayloadError(f"its examples ({part} {number}) are not in the store")
            path = self._scratch / f"{part}-{number}.arrow"
            path.write_bytes(payload)
            files.append(str(path))
        return files

    def _launch(self, order: Order) -> str:
        """Run the processes to their end; return their last words, for the case that it was a death."""
        self._out_of_memory = False
        path = self._scratch / "order.json"
        # Not beside the checkpoints: a process whose log has no room dies before it can say that the disk is full.
        log = self._scratch / "train.log"
        try:
            with socket_directory("hugqueue-train-") as directory:
                address = directory / "socket"
                replace(order, socket=str(address)).write(path)
                with Launch(path, address, log, cuda=order.cuda, processes=order.processes) as launch:
                    self._hear_out(launch)
                    return launch.last_words()
        finally:
            drop_halves(self._work)

    def _hear_out(self, launch: Launch) -> None:
        stop_by: float | None = None
        while True:
            stop_by = self._look(launch, stop_by)
            try:
                message = launch.messages.get(timeout=LOOK)
            except queue.Empty:
                continue
            if message["kind"] == "ended":
                break
            if message["kind"] == "failed":
                logger.error("job %s: its training processes said:\n%s", self._turn.job.id, launch.tail())
            self._hear(message)
        if stop_by is not None and self._result is None:
            self._uploads.finish(stop_by - time.monotonic())
            self._stage("waiting for a worker to go on")
            self._turn.held.give_up("stopping")
            raise Cancelled

    def _look(self, launch: Launch, stop_by: float | None) -> float | None:
        """End the processes when the turn is over: at once, or with a checkpoint where the worker is stopping."""
        held = self._turn.held
        stopping = self._turn.stopping.is_set() or held.reason == "stopping"
        if held.given_up.is_set() and not stopping:
            launch.kill()
            raise Cancelled
        if stopping and stop_by is None:
            self._stage("writing a checkpoint: the worker is stopping")
            launch.stop()
            return time.monotonic() + self._settings.grace
        if stop_by is not None and time.monotonic() > stop_by:
            launch.kill()
        return stop_by

    def _hear(self, message: Mapping[str, Json]) -> None:
        match message["kind"]:
            case "progress":
                self._progress |= {name: value for name, value in message.items() if name != "kind"}
                self._progress["stage"] = ""
                self._tell()
            case "stage":
                self._stage(message["text"])
            case "note":
                self._note(message["text"])
            case "checkpoint":
                self._uploads.add(Path(message["path"]))
            case "out_of_memory":
                self._out_of_memory = True
            case "done":
                self._result = message["result"]
            case "failed":
                kind = ModelError if message["error"] == "model" else WorkerError
                raise kind(message["code"], message["message"])

    def _halved(self, order: Order) -> Order:
        size = order.batch_size
        if size == 1:
            raise ModelError(
                "out_of_memory",
                "Not even one example at a time fits into memory: try a lower --max-length, --lora, or "
                "-p gradient_checkpointing=true.",
            )
        part = next(number for number in range(size // 2, 0, -1) if size % number == 0)
        accumulation = order.gradient_accumulation * (size // part)
        self._note(f"Memory ran out: going on with batches of {part}, {accumulation} of them for each step.")
        return replace(order, batch_size=part, gradient_accumulation=accumulation)

    def _finish(self, record_id: Json, result: dict[str, Json], seconds: float) -> ChunkResult:
        job_id, attempt = self._turn.job.id, self._turn.attempt
        self._stage("storing the model")
        self._uploads.drop()
        while not self._uploads.rest(LOOK):
            self._check_wanted()
        add_model(self._models, job_id, attempt, self._work / "model", self._check_wanted)

        def settle(counts: bool) -> None:
            with suppress(OSError, StorageError, UsageError):  # `ModelsStore.find` copes with what is left undone
                (self._models.choose if counts else self._models.drop_model)(job_id, attempt)

        result = {**result, "seconds": round(seconds, 1), "notes": self._progress["notes"]}
        outcomes = [Outcome(result)]
        payload = encode_outcomes([0], [record_id], outcomes, None)
        facts = {"device": result["device"], "commit": result["base_commit"], "versions": result["versions"]}
        return ChunkResult(payload, count(outcomes), seconds, facts, settle)

    def _earlier_work(self) -> list[Path]:
        return self._models.earlier_work(self._turn.job.id)

    def _check_wanted(self) -> None:
        """Raise `Cancelled` where the turn was given up; the stop of a worker does that only after its grace."""
        if self._turn.held.given_up.is_set():
            raise Cancelled

    def _stage(self, text: str) -> None:
        self._check_wanted()
        self._progress["stage"] = text
        self._tell()

    def _note(self, text: str) -> None:
        notes: list[str] = self._progress["notes"]
        if text not in notes:
            notes.append(text)
            self._tell()

    def _tell(self) -> None:
        self._turn.tell(self._progress)


def _options(spec: JobSpec) -> Training:
    """Return the options of a fine-tune job, which anybody may have written.

    Raises:
        ModelError: `bad_param`, they are not what a producer of ours writes.
    """
    try:
        if spec.task not in LABEL_KINDS:
            raise ValueError(f"{spec.task} cannot be fine-tuned")
        return Training.decode(spec.training or {})
    except (ValueError, UsageError) as error:
        raise ModelError("bad_param", str(error)) from error


def _processes(training: Training, gpus: int) -> int:
    """Return how many processes to train with: one for each GPU; on the CPU one, unless the job wants more.

    Raises:
        WorkerError: `no_memory`, this worker has fewer GPUs than the job wants.
    """
    if gpus and training.gpus is not None and training.gpus > gpus:
        raise WorkerError("no_memory", f"The job wants {training.gpus} GPUs, and this worker has {gpus}.")
    return training.gpus or max(1, gpus)
