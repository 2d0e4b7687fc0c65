"""TRL's trainers for conversations: supervised fine-tuning on chats, DPO on preferences."""

import copy
from functools import partial
from typing import Any

from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from common.training.options import TrainingOptions
from workers.training.trainer.base_model import lora_config, lora_error
from workers.training.trainer.job_trainer import LogsPerplexity, NotesWarmup, TrainerKind

#: Examples come tokenized and cut; other arguments keep transformers' defaults, where TRL has its own.
_DEFAULTS = {"max_length": None, "remove_unused_columns": False, "gradient_checkpointing": False}

#: Far below those of other training: the answers are to change little.
_PREFERENCE_RATES = (1e-6, 5e-6)


class _ChatTrainer(LogsPerplexity, NotesWarmup, SFTTrainer):  # type: ignore[misc]
    """The trainer of chats."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: the model gets a card of hugqueue's."""


class _PreferenceTrainer(NotesWarmup, DPOTrainer):  # type: ignore[misc]
    """The trainer of preferences."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Do nothing: the model gets a card of hugqueue's."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Return the examples as they are: they are tokenized, which `SFTTrainer` would notice."""
        return dataset


def _build_preference_trainer(options: TrainingOptions, **values: Any) -> Any:
    """Return a trainer that compares with the model as it is now: without its adapters, or a copy."""
    if options.lora:
        try:
            return _PreferenceTrainer(**values, peft_config=lora_config(options))
        except ValueError as error:
            raise lora_error(error) from error
    # Where the copy's part is computed in advance, the trainer does so before it changes the model.
    is_needed = not values["args"].precompute_ref_log_probs
    return _PreferenceTrainer(**values, ref_model=copy.deepcopy(values["model"]) if is_needed else None)


CHATS = TrainerKind(_ChatTrainer, SFTConfig, _DEFAULTS)


def preferences(options: TrainingOptions) -> TrainerKind:
    """Return the trainer of preferences, which adds the LoRA adapters that the options ask for."""
    return TrainerKind(
        partial(_build_preference_trainer, options), DPOConfig, _DEFAULTS, _PREFERENCE_RATES, adapts_model=True
    )
