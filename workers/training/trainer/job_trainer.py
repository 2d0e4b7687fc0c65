"""Trainers of fine-tune jobs: what hugqueue adds to transformers' `Trainer` and to those derived from it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import Trainer, TrainingArguments


class NotesWarmup:
    """Mixed into a Trainer: notes a warm-up as long as the training."""

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


class LogsPerplexity:
    """Mixed into a Trainer: adds the perplexity, the exponential of the loss, for tasks that predict tokens."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the perplexity of an evaluation, so that it can choose the best checkpoint."""
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
        super().log(logs, start_time)  # type: ignore[misc]


class JobTrainer(NotesWarmup, Trainer):  # type: ignore[misc]
    """The trainer of examples with labels."""


class PerplexityTrainer(LogsPerplexity, JobTrainer):
    """The trainer of texts."""


@dataclass(frozen=True, slots=True)
class TrainerKind:
    """A trainer, and the arguments that it takes."""

    trainer: Callable[..., Any]  #: called like transformers' `Trainer`, and with `note` as `NotesWarmup`
    arguments: type[TrainingArguments] = TrainingArguments
    defaults: Mapping[str, Any] = field(default_factory=dict)  #: of the arguments, in place of those for all trainers
    learning_rates: tuple[float, float] = (5e-5, 2e-4)  #: the default for all weights, and for LoRA adapters
    adapts_model: bool = False  #: it adds LoRA adapters itself, and compares with the model as it was


LABELED = TrainerKind(JobTrainer)
TEXTS = TrainerKind(PerplexityTrainer)
