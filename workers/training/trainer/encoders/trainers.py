"""The trainers of sentence-transformers, with checkpoints that a job can be resumed from exactly."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from sentence_transformers import (
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

from workers.training.trainer.job_trainer import NotesWarmup, TrainerKind

_WEIGHTS = "model.safetensors"


class _ResumableTrainer(NotesWarmup):
    """Part of a trainer: checkpoints hold the weights as they are, adapters included, and no model card.

    The trainers' own checkpoints are whole models, whose card quotes examples and asks the Hub for the base model;
    and a best checkpoint that cannot be loaded is passed over with a line in the log.
    """

    model: Any
    args: Any
    state: Any

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Collect nothing for a model card: hugqueue writes its own."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(directory / _WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self.model, Path(resume_from_checkpoint) / _WEIGHTS)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class EmbeddingTrainer(_ResumableTrainer, SentenceTransformerTrainer):  # type: ignore[misc]
    """Trains a `SentenceTransformer`."""


class RerankTrainer(_ResumableTrainer, CrossEncoderTrainer):  # type: ignore[misc]
    """Trains a `CrossEncoder`."""


_DEFAULTS = {"train_sampling_strategy": "random"}  # by length it would be for Trainer's own batches
#: By task.
TRAINERS = {
    "embedding": TrainerKind(EmbeddingTrainer, SentenceTransformerTrainingArguments, _DEFAULTS),
    "rerank": TrainerKind(
        RerankTrainer,
        CrossEncoderTrainingArguments,
        # With several processes, torch's search for unused weights fails on what a CrossEncoder returns.
        {**_DEFAULTS, "ddp_find_unused_parameters": False},
    ),
}
