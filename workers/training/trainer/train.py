"""Training run: from a run configuration to a finished model directory, with transformers' `Trainer`."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PrinterCallback, set_seed

from common.errors import ModelError, UsageError
from common.records import Json
from common.training.options import check_conflicts
from workers.inference.loading.loader import ModelSource
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.arguments import best_metric, build_training_arguments
from workers.training.trainer.base_model import load_base_model, match_base_labels, max_example_tokens
from workers.training.trainer.callbacks import CheckpointCallback, ProgressCallback
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.conversation_recipes import CONVERSATION_RECIPES
from workers.training.trainer.data import Examples, to_dataset
from workers.training.trainer.evaluation import evaluate
from workers.training.trainer.metrics import logits_of, metrics_for
from workers.training.trainer.model_card import summarize_run, write_model_card
from workers.training.trainer.recipes import RECIPES, EncodedExamples, TaskRecipe
from workers.training.trainer.run_logs import continue_logs, keep_logs


def train(config: TrainingRunConfig, control: ControlSocket) -> dict[str, Json]:
    """Train, leave the finished model in `config.model_dir`, and return the summary of the run.

    Raises:
        ModelError: the job cannot be done.
        UsageError: its examples cannot be learned from.
        TrainingStopped: the worker is stopping; a checkpoint is written.
    """
    options = config.options
    control.stage("reading the examples")
    examples = Examples(config)
    for text in examples.notes:
        control.note(text)
    try:
        check_conflicts(options, examples.labels, len(examples.train), evaluates=bool(examples.eval))
    except UsageError as error:
        raise ModelError("bad_param", str(error)) from error
    recipe = CONVERSATION_RECIPES.get(examples.labels.kind, RECIPES[config.job.task])
    adapts_model = recipe.trainer().adapts_model
    control.stage(f"loading {config.model_info['model']}")
    set_seed(options.seed)
    source = ModelSource(Path(config.base_model), config.load)
    examples.labels = match_base_labels(recipe.auto_class, source, examples.labels, control.note)
    model, tokenizer = load_base_model(
        recipe.auto_class, source, examples.labels, options, control.note, as_it_is=adapts_model
    )
    encoded = _encode(recipe, tokenizer, examples, max_example_tokens(model, tokenizer, options), control.note)
    use_cache = getattr(model.config, "use_cache", None)
    trainer = _build_trainer(config, control, recipe, model, tokenizer, examples.labels, encoded)
    control.stage("training")
    if trainer.is_world_process_zero():
        continue_logs(config.checkpoint, config.work_dir)
    trainer.train(resume_from_checkpoint=config.checkpoint)
    if "eval" in encoded:
        control.stage("evaluating")
    evaluation = evaluate(trainer, examples, evaluates="eval" in encoded)
    result = summarize_run(config, trainer, examples, evaluation, control.notes)
    control.stage("saving the model")
    if trainer.is_world_process_zero():
        _save(trainer, tokenizer, config, use_cache)
        keep_logs(config.work_dir, config.model_dir)
        write_model_card(config.model_dir, result)
    trainer.accelerator.wait_for_everyone()
    return result


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
    model: Any,
    tokenizer: Any,
    labels: Any,
    encoded: Mapping[str, EncodedExamples],
) -> Any:
    job, options, kind = config.job, config.options, recipe.trainer()
    evaluates = "eval" in encoded
    metrics = metrics_for(labels)
    metric = best_metric(job.task, labels, options) if evaluates else None
    checkpoint = Path(config.checkpoint) if config.checkpoint else None
    callbacks: list[Any] = [
        ProgressCallback(control),
        CheckpointCallback(control, config.checkpoint_seconds, checkpoint),
    ]
    if options.early_stopping:
        callbacks.append(EarlyStoppingCallback(options.early_stopping))
    values = {
        "note": control.note,
        "model": model,
        "args": build_training_arguments(config, kind, evaluates=evaluates, metric=metric),
        "train_dataset": to_dataset(encoded["train"].columns),
        "eval_dataset": to_dataset(encoded["eval"].columns) if evaluates else None,
        "data_collator": recipe.collator(tokenizer),
        "processing_class": tokenizer,
        "compute_metrics": (lambda found: metrics(logits_of(found.predictions), found.label_ids)) if metrics else None,
        "callbacks": callbacks,
    }
    trainer = kind.build(options, values)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(trainer: Any, tokenizer: Any, config: TrainingRunConfig, use_cache: bool | None) -> None:
    """Write the model as safetensors: LoRA adapters merged in, or alone.

    Args:
        trainer: has the model.
        tokenizer: the model's.
        config: where they go, and whether adapters are merged.
        use_cache: the base model's own setting, which Trainer changes for the training.
    """
    model, directory = trainer.accelerator.unwrap_model(trainer.model), config.model_dir
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
