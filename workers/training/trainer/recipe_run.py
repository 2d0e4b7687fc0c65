"""A run by a recipe: from its examples and base model to a trainer of transformers, or of TRL for conversations."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.records import Json
from workers.inference.loading.loader import ModelSource
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.arguments import best_metric, build_training_arguments
from workers.training.trainer.base_model import load_base_model, match_base_labels, max_example_tokens
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.conversation_recipes import CONVERSATION_RECIPES
from workers.training.trainer.data import Examples, to_dataset
from workers.training.trainer.job_trainer import TrainerKind
from workers.training.trainer.metrics import logits_of, metrics_for
from workers.training.trainer.prepared_run import PreparedRun, run_callbacks
from workers.training.trainer.recipes import RECIPES, EncodedExamples, TaskRecipe


def prepare_by_recipe(config: TrainingRunConfig, control: ControlSocket, examples: Examples) -> PreparedRun:
    """Return the run of a job, its examples without those that cannot be learned.

    Raises:
        WorkerError: `missing_library`, TRL is not installed.
        ModelError: the model cannot be loaded or trained as the job says.
        UsageError: the examples cannot be learned from.
    """
    options, source = config.options, ModelSource(Path(config.base_model), config.load)
    recipe = CONVERSATION_RECIPES.get(examples.labels.kind) or RECIPES[config.job.task]
    kind = recipe.trainer(options)
    examples.labels = match_base_labels(recipe.auto_class, source, examples.labels, control.note)
    model, tokenizer = load_base_model(
        recipe.auto_class, source, examples.labels, options, control.note, as_it_is=kind.adapts_model
    )
    encoded = _encode(recipe, tokenizer, examples, max_example_tokens(model, tokenizer, options), control.note)
    use_cache = getattr(model.config, "use_cache", None)
    trainer = _build_trainer(config, control, recipe, kind, model, tokenizer, examples, encoded)
    return PreparedRun(trainer, save=partial(_save, trainer, tokenizer, config, use_cache))


def _encode(
    recipe: TaskRecipe, tokenizer: Any, examples: Examples, max_tokens: int, note: Callable[[str], None]
) -> dict[str, EncodedExamples]:
    """Return the tokenized example sets; examples without a token are removed, and noted like truncated ones."""
    truncated, empty = Counter[str](), 0
    sets = {"train": examples.train, "eval": examples.eval}
    encoded = {
        name: recipe.encode(tokenizer, chosen, examples.labels, max_tokens) for name, chosen in sets.items() if chosen
    }
    for name, found in encoded.items():
        if not any(found.columns.values()):
            what = "No chat is short enough" if found.left_out else "The tokenizer finds no token in any text"
            raise UsageError(f"{what}: there is nothing to learn from.")
        examples.remove(name, [*found.without_tokens, *found.left_out])
        empty += len(found.without_tokens)
        truncated.update(found.truncated)
    for text in dict.fromkeys(text for found in encoded.values() for text in found.notes):
        note(text)
    if empty:
        note(f"{empty:,} {'text' if empty == 1 else 'texts'} without any token: left out.")
    for how, count in truncated.items():
        if count:
            note(f"{count:,} {'text is' if count == 1 else 'texts are'} longer than {max_tokens:,} tokens, and {how}.")
    return encoded


def _build_trainer(
    config: TrainingRunConfig,
    control: ControlSocket,
    recipe: TaskRecipe,
    kind: TrainerKind,
    model: Any,
    tokenizer: Any,
    examples: Examples,
    encoded: Mapping[str, EncodedExamples],
) -> Any:
    metrics = metrics_for(examples.labels)
    metric = best_metric(examples.labels, examples.eval, config.options)
    return kind.trainer(
        note=control.note,
        model=model,
        args=build_training_arguments(config, kind, metric),
        train_dataset=to_dataset(encoded["train"].columns),
        eval_dataset=to_dataset(encoded["eval"].columns) if "eval" in encoded else None,
        data_collator=recipe.collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=(lambda found: metrics(logits_of(found.predictions), found.label_ids)) if metrics else None,
        callbacks=run_callbacks(config, control),
    )


def _save(trainer: Any, tokenizer: Any, config: TrainingRunConfig, use_cache: bool | None, directory: Path) -> None:
    """Write the model as safetensors: LoRA adapters merged in, or alone.

    Args:
        trainer: has the model.
        tokenizer: the model's.
        config: whether adapters are merged, and the name of the base.
        use_cache: the base model's own setting, which Trainer changes for the training.
        directory: where they go.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer.save_pretrained(directory)
    if not config.options.merge:
        _save_adapter(model, directory, config.job.model, config.model_info["commit"])
        return
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if use_cache is not None:
        model.config.use_cache = use_cache
    model.save_pretrained(directory)


def _save_adapter(model: Any, directory: Path, base: str | None, commit: Json) -> None:
    """Write the adapters alone, with the base as the job names it."""
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path, adapter.revision = base, commit
    # Otherwise peft asks the Hub for the base's configuration.
    model.save_pretrained(directory, save_embedding_layers=False)
