"""Training run: from a run configuration to a finished model directory, with transformers' `Trainer`.

The tasks whose examples are pairs of texts have their own trainers (`workers.training.trainer.encoders`).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, set_seed

from common.errors import ModelError, UsageError
from common.records import Json
from common.training.options import check_conflicts
from common.training.text_pairs import PAIR_TASKS
from workers.inference.loading.loader import ModelSource
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.arguments import best_metric, build_training_arguments
from workers.training.trainer.base_model import load_base_model, match_base_labels, max_example_tokens
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.data import Examples, to_dataset
from workers.training.trainer.evaluation import evaluate
from workers.training.trainer.metrics import logits_of, metrics_for
from workers.training.trainer.model_card import summarize_run, write_model_card
from workers.training.trainer.prepared_run import PreparedRun, WarmupNote, run_callbacks
from workers.training.trainer.recipes import RECIPES, EncodedExamples


class JobTrainer(WarmupNote, Trainer):  # type: ignore[misc]
    """A Trainer that notes a warm-up as long as the training."""


class PerplexityTrainer(JobTrainer):
    """A Trainer that adds the perplexity, the exponential of the loss, for tasks that predict tokens."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the perplexity of an evaluation, so that it can choose the best checkpoint."""
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
        super().log(logs, start_time)


def train(config: TrainingRunConfig, control: ControlSocket) -> dict[str, Json]:
    """Train, leave the finished model in `config.model_dir`, and return the summary of the run.

    Raises:
        ModelError: the job cannot be done.
        WorkerError: this worker cannot do it.
        UsageError: its examples cannot be learned from.
        TrainingStopped: the worker is stopping; a checkpoint is written.
    """
    control.stage("reading the examples")
    examples = Examples(config)
    for text in examples.notes:
        control.note(text)
    try:
        check_conflicts(config.options, examples.labels, len(examples.train), evaluates=bool(examples.eval))
    except UsageError as error:
        raise ModelError("bad_param", str(error)) from error
    control.stage(f"loading {config.model_info['model']}")
    set_seed(config.options.seed)
    run = _prepare(config, control, examples)
    control.stage("training")
    run.trainer.train(resume_from_checkpoint=config.checkpoint)
    if examples.eval:
        control.stage("evaluating")
    result = summarize_run(config, run.trainer, examples, run.evaluate(), control.notes)
    control.stage("saving the model")
    if run.trainer.is_world_process_zero():
        run.save(config.model_dir)
        write_model_card(config.model_dir, result)
    run.trainer.accelerator.wait_for_everyone()
    return result


def _prepare(config: TrainingRunConfig, control: ControlSocket, examples: Examples) -> PreparedRun:
    if config.job.task in PAIR_TASKS:
        from workers.training.trainer.encoders.run import prepare_encoder

        return prepare_encoder(config, control, examples)
    recipe, source = RECIPES[config.job.task], ModelSource(Path(config.base_model), config.load)
    examples.labels = match_base_labels(recipe.auto_class, source, examples.labels, control.note)
    model, tokenizer = load_base_model(recipe.auto_class, source, examples.labels, config.options, control.note)
    max_tokens = max_example_tokens(model, tokenizer, config.options)
    encoded = _encode(config, tokenizer, examples, max_tokens, control.note)
    use_cache = getattr(model.config, "use_cache", None)
    trainer = _build_trainer(config, control, model, tokenizer, examples.labels, encoded)
    return PreparedRun(
        trainer,
        evaluate=partial(evaluate, trainer, examples, evaluates="eval" in encoded),
        save=lambda directory: _save(trainer, tokenizer, directory, use_cache),
    )


def _encode(
    config: TrainingRunConfig, tokenizer: Any, examples: Examples, max_tokens: int, note: Callable[[str], None]
) -> dict[str, EncodedExamples]:
    """Return the tokenized example sets; examples without a token are removed, and noted like truncated ones."""
    encode, truncated, empty = RECIPES[config.job.task].encode, Counter[str](), 0
    sets = {"train": examples.train, "eval": examples.eval}
    encoded = {name: encode(tokenizer, chosen, examples.labels, max_tokens) for name, chosen in sets.items() if chosen}
    for name, found in encoded.items():
        if not found.columns.get("input_ids"):
            raise UsageError("The tokenizer finds no token in any text: there is nothing to learn from.")
        examples.remove(name, found.without_tokens)
        empty += len(found.without_tokens)
        truncated.update(found.truncated)
    if empty:
        note(f"{empty:,} {'text' if empty == 1 else 'texts'} without any token: left out.")
    for how, count in truncated.items():
        if count:
            note(f"{count:,} {'text is' if count == 1 else 'texts are'} longer than {max_tokens:,} tokens, and {how}.")
    return encoded


def _build_trainer(
    config: TrainingRunConfig,
    control: ControlSocket,
    model: Any,
    tokenizer: Any,
    labels: Any,
    encoded: Mapping[str, EncodedExamples],
) -> Trainer:
    job, options = config.job, config.options
    evaluates = "eval" in encoded
    metrics = metrics_for(labels)
    metric = best_metric(job.task, labels, options) if evaluates else None
    trainer = (JobTrainer if metrics else PerplexityTrainer)(
        note=control.note,
        model=model,
        args=build_training_arguments(config, evaluates=evaluates, metric=metric),
        train_dataset=to_dataset(encoded["train"].columns),
        eval_dataset=to_dataset(encoded["eval"].columns) if evaluates else None,
        data_collator=RECIPES[job.task].collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=(lambda found: metrics(logits_of(found.predictions), found.label_ids)) if metrics else None,
        callbacks=run_callbacks(config, control),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(trainer: Trainer, tokenizer: Any, directory: Path, use_cache: bool | None) -> None:
    """Write the model as safetensors, LoRA adapters merged in.

    Args:
        trainer: has the model.
        tokenizer: the model's.
        directory: where they go.
        use_cache: the base model's own setting, which Trainer changes for the training.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if use_cache is not None:
        model.config.use_cache = use_cache
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
