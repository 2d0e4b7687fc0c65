"""A training run that is ready to start, and what the trainers of all tasks share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.callbacks import CheckpointCallback, ProgressCallback
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A trainer with its model and examples."""

    trainer: Any
    evaluate: Callable[[], Evaluation]  #: of the model that is kept, after the training
    save: Callable[[Path], None]  #: writes the model that is kept into a directory, in process 0 only


class WarmupNote:
    """Part of a Trainer: notes a warm-up as long as the training."""

    args: Any

    def __init__(self, *, note: Callable[[str], None], **options: Any) -> None:
        super().__init__(**options)
        self._note = note

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the learning rate schedule, without a warm-up where it would round up to the whole training."""
        arguments = self.args
        if arguments.get_warmup_steps(num_training_steps) >= num_training_steps:
            if arguments.warmup_steps < 1:
                arguments.warmup_steps = 0
                self._note("The training is too short for a warm-up: the learning rate starts at its peak.")
            else:
                self._note(
                    f"The warm-up of {arguments.warmup_steps:g} steps is at least as long as the training "
                    f"({num_training_steps:,} steps): the learning rate never reaches {arguments.learning_rate:g}."
                )
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]


def run_callbacks(config: TrainingRunConfig, control: ControlSocket) -> list[Any]:
    """Return the callbacks of a Trainer: progress, checkpoints, and an early end."""
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    callbacks: list[Any] = [
        ProgressCallback(control),
        CheckpointCallback(control, config.checkpoint_seconds, checkpoint),
    ]
    if config.options.early_stopping:
        callbacks.append(EarlyStoppingCallback(config.options.early_stopping))
    return callbacks
