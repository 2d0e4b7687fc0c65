"""Training run configuration: what the Celery process passes to the training processes, in one JSON file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from common.jobs import JobSpec
from common.records import Json
from common.training.options import TrainingOptions
from workers.models.load_options import DEFAULT_OPTIONS, LoadOptions


@dataclass(frozen=True, slots=True)
class TrainingRunConfig:
    """What to train, from which model, on which examples, and where the results go."""

    job: JobSpec
    options: TrainingOptions
    base_model: str  #: directory of the base model
    model_info: Mapping[str, Json]  #: its name and commit
    work_dir: str  #: of this attempt: checkpoints, and in the end `model`
    example_files: Mapping[str, list[str]]  #: `train` and `eval`: files with encoded records
    checkpoint_seconds: float
    cuda: bool
    processes: int
    batch_size: int  #: below the job's own after memory ran out
    gradient_accumulation: int
    load: LoadOptions = DEFAULT_OPTIONS
    socket: str = ""  #: path of the controller's socket
    checkpoint: str | None = None  #: to resume from

    @property
    def model_dir(self) -> Path:
        """Directory of the finished model."""
        return Path(self.work_dir) / "model"

    def write(self, path: Path) -> None:
        """Write the file that `read` reads, without the URL to notify: it may hold a token."""
        config = replace(self, job=replace(self.job, notify=None))
        path.write_text(json.dumps(msgspec.to_builtins(config)))  # ASCII: a file name may have no UTF-8 form

    @classmethod
    def read(cls, path: Path) -> "TrainingRunConfig":
        """Return the configuration in that file."""
        return msgspec.convert(json.loads(path.read_text()), cls)
