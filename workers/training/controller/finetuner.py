"""Fine-tuning in the Celery process: runs train chunks, one at a time, by launching the training processes.

Crashed processes are restarted from the last complete checkpoint; after several crashes without progress the job
fails. The finished model goes to the model registry.
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from celery import Celery

from common.errors import Cancelled, ModelError, PayloadError, StorageError, UsageError, WorkerError
from common.gpus import find_gpus
from common.jobs import Job, JobSpec
from common.models.checkpoints import latest_complete, remove_incomplete, step_of
from common.models.registry import open_registry, registry_url
from common.payloads.codec import count, decode_records, encode_outcomes
from common.queue.jobs import JobStore
from common.queue.ledger import Lease
from common.records import Json, Outcome
from common.reporting import CancelToken
from common.settings import Settings
from common.sockets import socket_directory
from common.training.kinds import TASK_KINDS
from common.training.options import TrainingOptions
from workers.device.protocol import ChunkResult
from workers.devices import only_trains
from workers.disk_space import DISK_FULL_ERRNOS
from workers.leases import HeldLease
from workers.models.resolver import ModelPolicy, resolve
from workers.training.controller.launch import Launch, training_env
from workers.training.controller.progress import ProgressReporter
from workers.training.controller.reporting import check_reporters
from workers.training.controller.uploads import POLL_SECONDS, Uploads, add_model, run_in_thread
from workers.training.run_config import TrainingRunConfig

logger = logging.getLogger(__name__)

#: The example sets of a train chunk.
_SETS = ("train", "eval")
#: Crashes of the training processes without progress after which the job fails.
_MAX_CRASHES = 3


@dataclass(frozen=True, slots=True)
class _TrainChunk:
    """The one chunk of a fine-tune job, under a lease."""

    job: Job
    held: HeldLease
    stopping: CancelToken  #: the worker is stopping
    on_checkpoint: Callable[[int], None]  #: called with the step of each checkpoint that outlives this worker

    @property
    def attempt(self) -> str:
        """The unique name of this attempt: that of its directories."""
        return _attempt_name(self.held.lease)


class FineTuner:
    """Runs train chunks, one at a time."""

    def __init__(self, settings: Settings, store: JobStore, app: Celery) -> None:
        self._settings = settings
        self._store = store
        self._app = app
        self._lock = threading.Lock()

    @property
    def runs_other_tasks(self) -> bool:
        """Whether the worker also runs inference, for which it needs its device process."""
        return not only_trains(self._settings)

    def run(
        self, job: Job, held: HeldLease, stopping: CancelToken, on_checkpoint: Callable[[int], None]
    ) -> ChunkResult:
        """Return the result of a train chunk: one outcome, with the metrics and the name of the model.

        Args:
            job: a fine-tune job.
            held: the lease of its one chunk.
            stopping: cancelled when the worker is stopping.
            on_checkpoint: called with the step of each checkpoint that outlives this worker, from any thread.

        Raises:
            Cancelled: the lease was cancelled, or the worker is stopping.
            ModelError: the job cannot be done.
            WorkerError: this worker cannot do it.
        """
        while not self._lock.acquire(timeout=POLL_SECONDS):
            if held.cancel_token.is_cancelled or stopping.is_cancelled:
                raise Cancelled
        try:
            chunk = _TrainChunk(job, held, stopping, on_checkpoint)
            reporter = ProgressReporter(job.id, self._store, self._app, held.cancel_token)
            with tempfile.TemporaryDirectory(prefix="hugqueue-train-", ignore_cleanup_errors=True) as scratch:
                return _Attempt(chunk, self._settings, self._store, reporter, Path(scratch)).run()
        except UsageError as error:  # the model registry is misconfigured or denies access
            raise WorkerError("models_store", str(error)) from error
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            raise WorkerError("disk_full", f"No disk space for the files of a fine-tune job: {error}") from error
        finally:
            self._lock.release()

    def promote_or_delete(self, lease: Lease, committed: bool) -> None:
        """Make the model of a train chunk the job's, or delete it if the chunk's commit did not count."""
        registry = open_registry(registry_url(self._settings), self._settings.model_cache)
        with suppress(OSError, StorageError, UsageError):  # `ModelRegistry.find` copes with what is left undone
            (registry.promote if committed else registry.delete_model)(lease.job_id, _attempt_name(lease))


def _attempt_name(lease: Lease) -> str:
    """Return the unique name of an attempt: that of its directories."""
    return f"{lease.round}-{lease.number}-{lease.holder[-8:]}"


class _Attempt:
    """One attempt at a train chunk: as many launches as it takes."""

    def __init__(
        self, chunk: _TrainChunk, settings: Settings, store: JobStore, reporter: ProgressReporter, scratch: Path
    ) -> None:
        self._chunk = chunk
        self._job = chunk.job
        self._settings = settings
        self._payloads = store.payloads(chunk.job.spec)
        self._reporter = reporter
        self._scratch = scratch
        self._registry = open_registry(registry_url(settings), settings.model_cache)
        self._work_dir = self._registry.attempt_dir(chunk.job.id, chunk.attempt)
        self._uploads = Uploads(self._registry, chunk.job.id, chunk.attempt, chunk.on_checkpoint)
        self._result: dict[str, Json] | None = None
        self._out_of_memory = False

    def run(self) -> ChunkResult:
        """Return the result of the chunk.

        Raises:
            Cancelled: the lease was cancelled, or the worker is stopping.
            ModelError: the job cannot be done.
            WorkerError: this worker cannot do it.
            StorageError: the model registry is unavailable.
            UsageError: the model registry is misconfigured or denies access.
        """
        started = time.monotonic()
        self._reporter.stage("preparing")
        with suppress(OSError, StorageError, UsageError):  # failing to free space is no reason to fail the job
            run_in_thread(partial(self._registry.evict_stale, self._job.id), self._chunk.held.cancel_token)
        record_id, config = self._build_run_config()
        crashes, furthest = 0, -1
        while self._result is None:
            config, steps = self._from_latest_checkpoint(config)
            if steps > furthest:
                crashes, furthest = 0, steps
            self._reporter.stage("starting the training processes")
            last_log_line = self._launch(config)
            if self._out_of_memory:
                config = self._with_smaller_batch(config)
            elif self._result is None:
                crashes += 1
                logger.warning("job %s: the training processes crashed: %s", self._job.id, last_log_line)
                if crashes >= _MAX_CRASHES:
                    message = f"The training processes crashed {crashes} times without progress: {last_log_line}"
                    raise ModelError("training_died", message)
        return self._finish(record_id, self._result, time.monotonic() - started)

    def _build_run_config(self) -> tuple[Json, TrainingRunConfig]:
        """Return the id of the chunk's one record, and the configuration of a first launch."""
        job, settings, policy = self._job, self._settings, ModelPolicy.of(self._settings)
        options, (record_id, sets) = _training_options(job.spec), self._train_record()
        check_reporters(options.report_to, settings.report_to, os.environ)
        resolved = resolve(job.spec.model, job.spec.revision, job.spec.task, policy, self._reporter)
        gpus = [] if settings.device == "cpu" else find_gpus()
        return record_id, TrainingRunConfig(
            job=job.spec,
            options=options,
            base_model=str(resolved.path),
            model_info={"model": resolved.model, "commit": resolved.commit},
            work_dir=str(self._work_dir),
            example_files={name: self._write_examples(name, chunks) for name, chunks in sets.items()},
            checkpoint_seconds=settings.checkpoint_seconds,
            cuda=bool(gpus),
            processes=_process_count(options, len(gpus)),
            batch_size=options.batch_size,
            gradient_accumulation=options.gradient_accumulation,
            load=replace(policy.load, adapter=str(resolved.adapter or "")),
        )

    def _train_record(self) -> tuple[Json, dict[str, int]]:
        """Return the id of the chunk's one record, and the number of payloads of each example set."""
        payload = self._payloads.records(self._chunk.held.lease.chunk)
        records = decode_records(payload) if payload is not None else []
        sets = records[0].input if len(records) == 1 else None
        if not isinstance(sets, dict) or not all(isinstance(sets.get(name), int) for name in _SETS):
            raise PayloadError("it does not say where its examples are")
        return records[0].id, {name: sets[name] for name in _SETS}

    def _write_examples(self, name: str, chunks: int) -> list[str]:
        files = []
        for number in range(chunks):
            payload = self._payloads.examples(name, number)
            if payload is None:
                raise PayloadError(f"its examples ({name} {number}) are missing")
            path = self._scratch / f"{name}-{number}.arrow"
            path.write_bytes(payload)
            files.append(str(path))
        return files

    def _from_latest_checkpoint(self, config: TrainingRunConfig) -> tuple[TrainingRunConfig, int]:
        """Return the configuration to resume from the latest complete checkpoint, and the steps done by then."""
        find = partial(self._registry.checkpoint_dirs, self._job.id)
        checkpoint = latest_complete(run_in_thread(find, self._chunk.held.cancel_token))
        if checkpoint is None:
            return replace(config, checkpoint=None), 0
        steps = step_of(checkpoint)
        self._reporter.progress({"step": steps})
        self._reporter.warning(f"Resuming from the checkpoint at step {steps:,}.")
        return replace(config, checkpoint=str(checkpoint)), steps

    def _launch(self, config: TrainingRunConfig) -> str:
        """Run the processes until they exit; return the line of their log that explains a crash."""
        self._out_of_memory = False
        path = self._scratch / "run_config.json"
        # Not next to the checkpoints: if their disk is full, the log could not record it.
        log = self._scratch / "train.log"
        try:
            with socket_directory("hugqueue-train-") as directory:
                socket_path = directory / "socket"
                replace(config, socket=str(socket_path)).write(path)
                with Launch(
                    path, socket_path, log, cuda=config.cuda, processes=config.processes, env=self._env(config)
                ) as launch:
                    self._wait_for_exit(launch)
                    return launch.last_log_line()
        finally:
            remove_incomplete(self._work_dir)

    def _env(self, config: TrainingRunConfig) -> dict[str, str]:
        return training_env(
            cuda=config.cuda,
            processes=config.processes,
            reporters=config.options.report_to,
            job_id=self._job.id,
        )

    def _wait_for_exit(self, launch: Launch) -> None:
        stop_by: float | None = None
        while not launch.has_ended():
            stop_by = self._check_stop(launch, stop_by)
            message = launch.next_message(POLL_SECONDS)
            if message is not None:
                self._handle_message(message, launch)
        if stop_by is not None and self._result is None:
            self._uploads.flush(stop_by - time.monotonic())
            self._reporter.stage("waiting for a worker to resume it")
            self._chunk.held.cancel_token.cancel("stopping")
            raise Cancelled

    def _check_stop(self, launch: Launch, stop_by: float | None) -> float | None:
        """End the processes: at once after a cancel, with a last checkpoint where the worker is stopping."""
        held = self._chunk.held
        stopping = self._chunk.stopping.is_cancelled or held.cancel_token.reason == "stopping"
        if held.cancel_token.is_cancelled and not stopping:
            launch.kill()
            raise Cancelled
        if stopping and stop_by is None:
            self._reporter.stage("writing a checkpoint: the worker is stopping")
            launch.stop()
            return time.monotonic() + self._settings.grace_seconds
        if stop_by is not None and time.monotonic() > stop_by:
            launch.kill()
        return stop_by

    def _handle_message(self, message: Mapping[str, Json], launch: Launch) -> None:
        match message:
            case {"kind": "progress", **values}:
                self._reporter.progress({**values, "stage": ""})
            case {"kind": "stage", "text": text}:
                self._reporter.stage(text)
            case {"kind": "note", "text": text}:
                self._reporter.warning(text)
            case {"kind": "checkpoint", "path": path}:
                self._uploads.add(Path(path))
            case {"kind": "out_of_memory"}:
                self._out_of_memory = True
            case {"kind": "done", "result": result}:
                self._result = result
            case {"kind": "failed", "error": cause, "code": code, "message": text}:
                logger.error("job %s: output of the training processes:\n%s", self._job.id, launch.log_tail())
                raise (ModelError if cause == "model" else WorkerError)(code, text)

    def _with_smaller_batch(self, config: TrainingRunConfig) -> TrainingRunConfig:
        size = config.batch_size
        if size == 1:
            raise ModelError(
                "out_of_memory",
                "Not even a batch of one example fits into memory: try a lower --max-length, --lora, or "
                "-p gradient_checkpointing=true.",
            )
        smaller = next(number for number in range(size // 2, 0, -1) if size % number == 0)
        accumulation = config.gradient_accumulation * (size // smaller)
        self._reporter.warning(f"Out of memory: continuing with batches of {smaller}, {accumulation} of them per step.")
        return replace(config, batch_size=smaller, gradient_accumulation=accumulation)

    def _finish(self, record_id: Json, result: dict[str, Json], seconds: float) -> ChunkResult:
        job_id, attempt = self._job.id, self._chunk.attempt
        self._reporter.stage("storing the model")
        self._uploads.discard_pending()
        while not self._uploads.wait_until_idle(POLL_SECONDS):
            self._chunk.held.cancel_token.check()
        add_model(self._registry, job_id, attempt, self._work_dir / "model", self._chunk.held.cancel_token)
        outcomes = [Outcome({**result, "seconds": round(seconds, 1), "notes": self._reporter.notes})]
        payload = encode_outcomes([0], [record_id], outcomes, None)
        run_info = {"device": result["device"], "commit": result["base_commit"], "versions": result["versions"]}
        return ChunkResult(payload, count(outcomes), seconds, run_info)


def _training_options(spec: JobSpec) -> TrainingOptions:
    """Return the options of a fine-tune job, which are untrusted.

    Raises:
        ModelError: `bad_param`, they are invalid.
    """
    try:
        if spec.task not in TASK_KINDS:
            raise ValueError(f"{spec.task} cannot be fine-tuned")
        return TrainingOptions.decode(spec.training or {})
    except (ValueError, UsageError) as error:
        raise ModelError("bad_param", str(error)) from error


def _process_count(options: TrainingOptions, gpus: int) -> int:
    """Return how many processes to train with: one for each GPU; on the CPU one, unless the job asks for more.

    Raises:
        WorkerError: `no_memory`, this worker has fewer GPUs than the job asks for.
    """
    if gpus and options.gpus is not None and options.gpus > gpus:
        raise WorkerError("no_memory", f"The job asks for {options.gpus} GPUs, and this worker has {gpus}.")
    return options.gpus or max(1, gpus)
