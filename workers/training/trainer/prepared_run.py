"""A training run that is ready to start, and the callbacks that all runs have."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.callbacks import CheckpointCallback, ProgressCallback
from workers.training.trainer.control_socket import ControlSocket


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A trainer with its model and examples."""

    trainer: Any
    save: Callable[[Path], None]  #: writes the model that is kept into a directory, in process 0 only


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
