"""The order: everything that the training processes are told, as one JSON file beside their work."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from common.jobs import JobSpec
from common.records import Json
from common.training.options import TrainingOptions


@dataclass(frozen=True, slots=True)
class TrainingRunConfig:
    """What to train, from what, on what, and where to leave it."""

    spec: str  #: the job, encoded
    model: str  #: directory of the base model
    model_info: Mapping[str, Json]  #: what is known of it: name, commit
    work: str  #: directory of this attempt: checkpoints, and `model` in the end
    socket: str  #: where the Celery process listens
    examples: Mapping[str, list[str]]  #: `train` and `eval`: files with payloads
    checkpoint: str | None  #: to go on from
    checkpoint_seconds: float
    cuda: bool
    processes: int
    batch_size: int  #: may be smaller than the job's, once memory ran out
    gradient_accumulation: int
    allow_pickle: bool
    allow_remote_code: bool

    @property
    def job(self) -> JobSpec:
        """The job."""
        return JobSpec.decode(self.spec)

    @property
    def training(self) -> TrainingOptions:
        """The job's options."""
        return TrainingOptions.decode(self.job.training or {})

    @property
    def model_directory(self) -> Path:
        """Where the finished model goes."""
        return Path(self.work) / "model"

    def write(self, path: Path) -> None:
        """Write the file that `read` takes."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "TrainingRunConfig":
        """Return the order in that file, which this worker's own Celery process wrote."""
        return cls(**json.loads(path.read_text()))
