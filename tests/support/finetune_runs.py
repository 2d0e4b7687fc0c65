"""Fine-tune jobs for tests: tiny base models, examples, and runs in this very process."""

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from transformers import BertForMaskedLM

from common.jobs import JobSpec, new_job_id
from common.models.checkpoints import latest_complete, step_of
from common.payloads.codec import encode_records
from common.records import Json, Record
from common.training.options import TrainingOptions
from tests.support.processes import Shell, Workers, wait_until
from tests.support.tiny_models import bert_config, wordpiece
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.control_socket import ControlSocket

#: The tutorial's own examples.
TUTORIAL = (
    ("I really liked this movie", 1),
    ("A great film with great actors", 1),
    ("This was a terrible waste of time", 0),
    ("I hated every minute of it", 0),
)


def write_reviews(path: Path, rows: Sequence[tuple[str, Json]] = TUTORIAL) -> Path:
    """Write a .csv with the columns text and label."""
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def base_model(directory: Path, spread: float = 0.02) -> Path:
    """A tiny BERT for masked words: it has no head for any other task, as bert-base-uncased.

    With a wider `spread` of its weights it tells texts apart from the first step on.
    """
    import torch

    wordpiece(directory)
    torch.manual_seed(1)
    config = bert_config()
    config.initializer_range = spread
    BertForMaskedLM(config).save_pretrained(directory)
    return directory


@dataclass
class Listener:
    """The Celery process's end of the socket, for training in this process."""

    # Not the test's own directory: a socket's path must be short. Gone when the listener is.
    directory: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory(prefix="hq-"))
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        address = f"{self.directory.name}/s"
        self.socket.bind(address)
        self.socket.listen(1)
        threading.Thread(target=self._listen, daemon=True).start()
        self.control = ControlSocket(address, 0)

    def _listen(self) -> None:
        # Kept open until the test process ends: closing it would end that process.
        self.connection, _ = self.socket.accept()
        for line in self.connection.makefile("rb"):
            self.messages.append(json.loads(line))

    def received(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["kind"] == kind]


def make_run_config(
    work: Path, task: str, base: Path, train: Sequence[Mapping[str, Json]],
    evaluation: Sequence[Mapping[str, Json]] = (), **options: Any,
) -> TrainingRunConfig:  # fmt: skip
    """A run configuration for training in this process, with checkpoints and model in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, examples in (("train", train), ("eval", evaluation)):
        path = work / f"{part}.arrow"
        path.write_bytes(encode_records([Record(number, dict(example)) for number, example in enumerate(examples)]))
        files[part] = [str(path)] if examples else []
    training = TrainingOptions(**options)
    spec = JobSpec(new_job_id(), task, str(base), queue="train", training=training.encode())
    return TrainingRunConfig(
        job=spec, options=training, base_model=str(base), model_info={"model": str(base), "commit": None},
        work_dir=str(work), example_files=files, checkpoint_seconds=1e9, cuda=False, processes=1,
        batch_size=training.batch_size, gradient_accumulation=training.gradient_accumulation,
    )  # fmt: skip


def train_here(run_config: TrainingRunConfig, listener: Listener | None = None) -> dict[str, Json]:
    """Train as configured, in this process."""
    from workers.training.trainer.train import train

    return train(run_config, (listener or Listener()).control)


def progress(shell: Shell, job: str) -> dict[str, Any]:
    return shell.status(job)["progress"] or {}


def wait_for_step(shell: Shell, job: str, step: int) -> None:
    wait_until(lambda: progress(shell, job).get("step", 0) >= step, 90, f"step {step} of job {job}")


def result_of(shell: Shell, job: str) -> dict[str, Any]:
    """What came of a completed job."""
    [row] = shell.results(job)
    assert "output" in row, row
    return row["output"]


def model_directory(store: Path, job: str) -> Path:
    chosen = json.loads((store / job / "model.json").read_text())
    return store / job / chosen["attempt"]


def use_registry(environ: dict[str, str], directory: Path) -> Path:
    """Let workers and commands with this environment store models in `directory`, with checkpoints all the time."""
    registry = directory / "models"
    environ |= {
        "HUGQUEUE_MODELS_URL": str(registry),
        "HUGQUEUE_MODEL_ROOTS": str(directory),
        "HUGQUEUE_CHECKPOINT": "0.1",
    }
    return registry


def training_processes(workers: Workers) -> list[psutil.Process]:
    """Return the processes that train, without the launcher of several."""
    found = []
    for process in workers.processes():
        try:
            if (
                "workers.training.trainer" in process.cmdline()
                and "accelerate.commands.launch" not in process.cmdline()
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def steps_kept(store: Path, job: str) -> int:
    """Return how many steps lie behind the last whole checkpoint of a job, 0 if there is none."""
    checkpoint = latest_complete((store / job / "work").glob("*"))
    return step_of(checkpoint) if checkpoint else 0
