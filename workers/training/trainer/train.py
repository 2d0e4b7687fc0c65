"""One training run, from an order to a finished model directory: what a tutorial does in sixty lines."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, set_seed

from common.errors import ModelError, UsageError
from common.records import Json
from common.training.conflicts import check_conflicts
from workers.inference.models.loader import ModelSource
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.arguments import best_metric, build_training_arguments
from workers.training.trainer.base_model import load_base_model, match_base_labels, max_example_tokens
from workers.training.trainer.callbacks import CheckpointCallback, ProgressCallback
from workers.training.trainer.control_socket import ControlSocket
from workers.training.trainer.data import Examples, to_dataset
from workers.training.trainer.evaluation import evaluate
from workers.training.trainer.metrics import logits_of
from workers.training.trainer.model_card import summarize_run, write_model_card
from workers.training.trainer.tasks import RECIPES, Encoded


class JobTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that says so where the warm-up leaves nothing to train with."""

    def __init__(self, *, note: Callable[[str], None], **options: Any) -> None:
        super().__init__(**options)
        self._note = note

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule of the learning rate; a share of one step, rounded up, would be all of the training."""
        arguments = self.args
        if arguments.get_warmup_steps(num_training_steps) >= num_training_steps:
            if arguments.warmup_steps < 1:
                arguments.warmup_steps = 0
                self._note("The training is too short for a warm-up: the learning rate begins at its highest.")
            else:
                self._note(
                    f"The warm-up of {arguments.warmup_steps:g} steps is as long as the training or longer "
                    f"({num_training_steps:,}): the learning rate never gets to {arguments.learning_rate:g}."
                )
        return super().create_scheduler(num_training_steps, optimizer)


class PerplexityTrainer(JobTrainer):
    """A trainer that gives the exponential of the loss beside it, for tasks that predict words."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the metrics of an evaluation, with one more: what is written is also what is judged by."""
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
        super().log(logs, start_time)


def train(run_config: TrainingRunConfig, link: ControlSocket) -> dict[str, Json]:
    """Train, leave the finished model in `order.model_directory`, and return what is to be known of it.

    Raises:
        ModelError: the job cannot be done.
        UsageError: its examples cannot be learnt from.
        Stopped: the worker is stopping; a checkpoint is written.
    """
    training, recipe = run_config.training, RECIPES[run_config.job.task]
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        link.send_from_main_process("note", text=text)

    link.send_from_main_process("stage", text="reading the examples")
    examples = Examples(run_config)
    for text in examples.notes:
        note(text)
    try:
        check_conflicts(training, examples.labels, len(examples.train), evaluates=bool(examples.evaluation))
    except UsageError as error:
        raise ModelError("bad_param", str(error)) from error
    link.send_from_main_process("stage", text=f"loading {run_config.model_info['model']}")
    set_seed(training.seed)
    source = ModelSource(
        Path(run_config.model), allow_pickle=run_config.allow_pickle, allow_remote_code=run_config.allow_remote_code
    )
    examples.labels = match_base_labels(recipe.auto_class, source, examples.labels, note)
    model, tokenizer = load_base_model(recipe.auto_class, source, examples.labels, training, note)
    most = max_example_tokens(model, tokenizer, training)
    encoded = {
        part: recipe.encode(tokenizer, chosen, examples.labels, most)
        for part, chosen in (("train", examples.train), ("eval", examples.evaluation))
        if chosen
    }
    for part in encoded.values():
        if not part.columns.get("input_ids"):
            raise UsageError("No text has any token that the model knows: there is nothing to learn from.")
    for name, part in encoded.items():
        examples.remove(name, part.without_tokens)
    without = sum(len(part.without_tokens) for part in encoded.values())
    if without:
        note(f"{without:,} {'text' if without == 1 else 'texts'} without any token: left out.")
    _note_truncation(encoded, most, note)
    cached = getattr(model.config, "use_cache", None)
    trainer = _trainer(run_config, link, model, tokenizer, examples, encoded, note)
    link.send_from_main_process("stage", text="training")
    trainer.train(resume_from_checkpoint=run_config.checkpoint)
    if "eval" in encoded:
        link.send_from_main_process("stage", text="evaluating")
    evaluation = evaluate(trainer, examples, evaluates="eval" in encoded)
    result = summarize_run(run_config, trainer, examples, evaluation, notes)
    link.send_from_main_process("stage", text="saving the model")
    if trainer.is_world_process_zero():
        _save(trainer, tokenizer, run_config.model_directory, cached)
        write_model_card(run_config, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _note_truncation(encoded: Mapping[str, Encoded], most: int, note: Callable[[str], None]) -> None:
    cut: Counter[str] = Counter()
    for part in encoded.values():
        cut.update(part.cut)
    for how, number in cut.items():
        if number:
            note(f"{number:,} {'text is' if number == 1 else 'texts are'} longer than {most:,} tokens, and {how}.")


def _trainer(
    run_config: TrainingRunConfig,
    link: ControlSocket,
    model: Any,
    tokenizer: Any,
    examples: Examples,
    encoded: Mapping[str, Encoded],
    note: Callable[[str], None],
) -> Trainer:
    job, training, recipe = run_config.job, run_config.training, RECIPES[run_config.job.task]
    evaluates = "eval" in encoded
    scores = recipe.scores(examples.labels)
    metric = best_metric(job.task, examples.labels, training) if evaluates else None
    callbacks: list[Any] = [
        ProgressCallback(link), CheckpointCallback(link, run_config.checkpoint_seconds, Path(run_config.checkpoint)
        if run_config.checkpoint else None),
    ]  # fmt: skip
    if training.early_stopping:
        callbacks.append(EarlyStoppingCallback(training.early_stopping))
    kind = JobTrainer if scores else PerplexityTrainer
    trainer = kind(
        note=note,
        model=model,
        args=build_training_arguments(run_config, evaluates=evaluates, metric=metric),
        train_dataset=to_dataset(encoded["train"].columns),
        eval_dataset=to_dataset(encoded["eval"].columns) if evaluates else None,
        data_collator=recipe.collator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=(lambda found: scores(logits_of(found.predictions), found.label_ids)) if scores else None,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(trainer: Trainer, tokenizer: Any, directory: Path, cached: bool | None) -> None:
    """Write the model whole: adapters merged into their base, no pickle.

    Args:
        trainer: has the model.
        tokenizer: the model's.
        directory: where they go.
        cached: the base model's own word on the cache of generation, which Trainer takes back for the training.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if cached is not None:
        model.config.use_cache = cached
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
