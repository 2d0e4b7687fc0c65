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

from common.errors import Cancelled, ModelError, PayloadError, StorageError, UsageError, WorkerError
from common.gpus import find_gpus
from common.jobs import Job, JobSpec
from common.models.checkpoints import latest_complete, remove_incomplete, step_of
from common.models.registry import ModelRegistry
from common.models.registry_location import open_registry, registry_url
from common.payloads.codec import count, decode_records, encode_outcomes
from common.queue.jobs import JobStore
from common.records import Json, Outcome
from common.settings import Settings
from common.sockets import socket_directory
from common.training.options import LABEL_KINDS, TrainingOptions
from workers.device.client.client import ChunkResult
from workers.leases import HeldLease
from workers.models.resolver import ModelPolicy, resolve
from workers.training.controller.launch import Launch
from workers.training.controller.uploads import POLL_SECONDS, Uploads, add_model, run_in_thread
from workers.training.run_config import TrainingRunConfig

logger = logging.getLogger(__name__)

#: The sets of examples that a train chunk refers to.
PARTS = ("train", "eval")
#: Deaths of the training processes without a step forward after which the job fails.
MAX_CRASHES = 3


@dataclass(frozen=True, slots=True)
class TrainChunk:
    """One train chunk in hand."""

    job: Job
    held: HeldLease
    stopping: threading.Event  #: the worker is stopping
    report: Callable[[Mapping[str, Json]], None]  #: gets the job's progress
    on_checkpoint: Callable[[int], None]  #: gets the steps of each checkpoint that outlives this worker

    @property
    def attempt(self) -> str:
        """The name of this attempt, which no other has: it names its directories."""
        lease = self.held.lease
        return f"{lease.round}-{lease.serial}-{lease.holder[-8:]}"


class Attempt:
    """The life of one turn: the launches it takes, and what is known of them."""

    def __init__(self, train_chunk: TrainChunk, settings: Settings, store: JobStore, scratch: Path) -> None:
        self._train_chunk = train_chunk
        self._settings = settings
        self._payloads = store.payloads(train_chunk.job.spec)
        self._scratch = scratch
        self._models: ModelRegistry = open_registry(registry_url(settings), settings.model_cache)
        self._work = self._models.attempt_dir(train_chunk.job.id, train_chunk.attempt)
        self._uploads = Uploads(self._models, train_chunk.job.id, train_chunk.attempt, train_chunk.on_checkpoint)
        self._progress: dict[str, Json] = {"notes": []}
        self._result: dict[str, Json] | None = None
        self._out_of_memory = False

    def run(self) -> ChunkResult:
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
            run_in_thread(lambda: self._models.evict_stale(self._train_chunk.job.id), self._check_cancelled)
        record_id, run_config = self._build_run_config()
        deaths, furthest = 0, -1
        while self._result is None:
            checkpoint = latest_complete(run_in_thread(self._earlier_work, self._check_cancelled))
            steps = step_of(checkpoint) if checkpoint else 0
            deaths, furthest = (0, steps) if steps > furthest else (deaths, furthest)
            run_config = replace(run_config, checkpoint=str(checkpoint) if checkpoint else None)
            if checkpoint:
                self._progress["step"] = steps
                self._note(f"Going on from the checkpoint at step {steps:,}.")
            self._stage("starting the training processes")
            words = self._launch(run_config)
            if self._out_of_memory:
                run_config = self._with_smaller_batch(run_config)
            elif self._result is None:
                deaths += 1
                logger.warning("job %s: its training processes died: %s", self._train_chunk.job.id, words)
                if deaths >= MAX_CRASHES:
                    message = f"The training processes died {deaths} times without a step forward: {words}"
                    raise ModelError("training_died", message)
        return self._finish(record_id, self._result, time.monotonic() - begun)

    def _build_run_config(self) -> tuple[Json, TrainingRunConfig]:
        job, settings = self._train_chunk.job, self._settings
        training, (record_id, parts) = _training_options(job.spec), self._train_record()
        policy = ModelPolicy.of(settings)
        resolved = resolve(job.spec.model, job.spec.revision, job.spec.task, policy, self._stage)
        gpus = [] if settings.device == "cpu" else find_gpus()
        processes = _processes(training, len(gpus))
        return record_id, TrainingRunConfig(
            spec=job.spec.encode(),
            model=str(resolved.path),
            model_info={"model": resolved.model, "commit": resolved.commit},
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
        payload = self._payloads.records(self._train_chunk.held.lease.chunk)
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

    def _launch(self, run_config: TrainingRunConfig) -> str:
        """Run the processes to their end; return their last words, for the case that it was a death."""
        self._out_of_memory = False
        path = self._scratch / "order.json"
        # Not beside the checkpoints: a process whose log has no room dies before it can say that the disk is full.
        log = self._scratch / "train.log"
        try:
            with socket_directory("hugqueue-train-") as directory:
                address = directory / "socket"
                replace(run_config, socket=str(address)).write(path)
                with Launch(path, address, log, cuda=run_config.cuda, processes=run_config.processes) as launch:
                    self._wait_for_exit(launch)
                    return launch.last_log_line()
        finally:
            remove_incomplete(self._work)

    def _wait_for_exit(self, launch: Launch) -> None:
        stop_by: float | None = None
        while True:
            stop_by = self._check_stop(launch, stop_by)
            try:
                message = launch.messages.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if message["kind"] == "ended":
                break
            if message["kind"] == "failed":
                logger.error("job %s: its training processes said:\n%s", self._train_chunk.job.id, launch.tail())
            self._handle_message(message)
        if stop_by is not None and self._result is None:
            self._uploads.flush(stop_by - time.monotonic())
            self._stage("waiting for a worker to go on")
            self._train_chunk.held.cancel("stopping")
            raise Cancelled

    def _check_stop(self, launch: Launch, stop_by: float | None) -> float | None:
        """End the processes when the turn is over: at once, or with a checkpoint where the worker is stopping."""
        held = self._train_chunk.held
        stopping = self._train_chunk.stopping.is_set() or held.reason == "stopping"
        if held.cancelled.is_set() and not stopping:
            launch.kill()
            raise Cancelled
        if stopping and stop_by is None:
            self._stage("writing a checkpoint: the worker is stopping")
            launch.stop()
            return time.monotonic() + self._settings.grace
        if stop_by is not None and time.monotonic() > stop_by:
            launch.kill()
        return stop_by

    def _handle_message(self, message: Mapping[str, Json]) -> None:
        match message["kind"]:
            case "progress":
                self._progress |= {name: value for name, value in message.items() if name != "kind"}
                self._progress["stage"] = ""
                self._report()
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

    def _with_smaller_batch(self, run_config: TrainingRunConfig) -> TrainingRunConfig:
        size = run_config.batch_size
        if size == 1:
            raise ModelError(
                "out_of_memory",
                "Not even one example at a time fits into memory: try a lower --max-length, --lora, or "
                "-p gradient_checkpointing=true.",
            )
        part = next(number for number in range(size // 2, 0, -1) if size % number == 0)
        accumulation = run_config.gradient_accumulation * (size // part)
        self._note(f"Memory ran out: going on with batches of {part}, {accumulation} of them for each step.")
        return replace(run_config, batch_size=part, gradient_accumulation=accumulation)

    def _finish(self, record_id: Json, result: dict[str, Json], seconds: float) -> ChunkResult:
        job_id, attempt = self._train_chunk.job.id, self._train_chunk.attempt
        self._stage("storing the model")
        self._uploads.discard_pending()
        while not self._uploads.wait_until_idle(POLL_SECONDS):
            self._check_cancelled()
        add_model(self._models, job_id, attempt, self._work / "model", self._check_cancelled)

        def settle(counts: bool) -> None:
            with suppress(OSError, StorageError, UsageError):  # `ModelRegistry.find` copes with what is left undone
                (self._models.choose if counts else self._models.delete_model)(job_id, attempt)

        result = {**result, "seconds": round(seconds, 1), "notes": self._progress["notes"]}
        outcomes = [Outcome(result)]
        payload = encode_outcomes([0], [record_id], outcomes, None)
        run_info = {"device": result["device"], "commit": result["base_commit"], "versions": result["versions"]}
        return ChunkResult(payload, count(outcomes), seconds, run_info, settle)

    def _earlier_work(self) -> list[Path]:
        return self._models.checkpoint_dirs(self._train_chunk.job.id)

    def _check_cancelled(self) -> None:
        """Raise `Cancelled` where the turn was given up; the stop of a worker does that only after its grace."""
        if self._train_chunk.held.cancelled.is_set():
            raise Cancelled

    def _stage(self, text: str) -> None:
        self._check_cancelled()
        self._progress["stage"] = text
        self._report()

    def _note(self, text: str) -> None:
        notes: list[str] = self._progress["notes"]
        if text not in notes:
            notes.append(text)
            self._report()

    def _report(self) -> None:
        self._train_chunk.report(self._progress)


def _training_options(spec: JobSpec) -> TrainingOptions:
    """Return the options of a fine-tune job, which anybody may have written.

    Raises:
        ModelError: `bad_param`, they are not what a producer of ours writes.
    """
    try:
        if spec.task not in LABEL_KINDS:
            raise ValueError(f"{spec.task} cannot be fine-tuned")
        return TrainingOptions.decode(spec.training or {})
    except (ValueError, UsageError) as error:
        raise ModelError("bad_param", str(error)) from error


def _processes(training: TrainingOptions, gpus: int) -> int:
    """Return how many processes to train with: one for each GPU; on the CPU one, unless the job wants more.

    Raises:
        WorkerError: `no_memory`, this worker has fewer GPUs than the job wants.
    """
    if gpus and training.gpus is not None and training.gpus > gpus:
        raise WorkerError("no_memory", f"The job wants {training.gpus} GPUs, and this worker has {gpus}.")
    return training.gpus or max(1, gpus)
