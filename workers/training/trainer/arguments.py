"""From a job's options to `TrainingArguments`: the defaults that make fine-tuning quick and safe."""

from typing import Any

import torch
from transformers import TrainingArguments

from common.errors import ModelError, UsageError
from common.training.labels import Labels, check_metric
from common.training.options import LESS_IS_BETTER, TrainingOptions
from workers.training.run_config import TrainingRunConfig

#: Share of all steps between two points of the loss curve.
_LOGGED = 0.01


def build_training_arguments(
    run_config: TrainingRunConfig, *, evaluates: bool, metric: str | None
) -> TrainingArguments:
    """Return the arguments of this run.

    Args:
        order: the job and where it runs.
        evaluates: whether there is an evaluation set.
        metric: what the best checkpoint is chosen by.

    Raises:
        ModelError: `bad_param`, transformers refuses a value.
    """
    training = run_config.training
    values = _chosen(run_config, training, evaluates=evaluates, metric=metric)
    values |= training.arguments
    if values["load_best_model_at_end"]:  # transformers wants a checkpoint for each evaluation then
        values["save_strategy"] = training.arguments.get("save_strategy", values["eval_strategy"])
        if "eval_steps" in values:
            values.setdefault("save_steps", values["eval_steps"])
    try:
        return TrainingArguments(**values)
    except (TypeError, ValueError, ImportError) as error:
        raise ModelError("bad_param", f"transformers refuses these arguments: {error}"[:1000]) from error


def best_metric(task: str, labels: Labels, training: TrainingOptions) -> str:
    """Return the metric that decides which checkpoint is best.

    Raises:
        ModelError: `bad_param`, an evaluation of these labels does not have the metric that the job names.
    """
    if training.metric_for_best is None:
        return labels.metrics[0]
    try:
        check_metric(task, labels, training.metric_for_best)
    except UsageError as error:
        raise ModelError("bad_param", str(error)) from error
    return training.metric_for_best.removeprefix("eval_")


def _chosen(
    run_config: TrainingRunConfig, training: TrainingOptions, *, evaluates: bool, metric: str | None
) -> dict[str, Any]:
    return {
        "output_dir": run_config.work,
        "num_train_epochs": training.epochs,
        "per_device_train_batch_size": run_config.batch_size,
        "per_device_eval_batch_size": max(run_config.batch_size, 16),
        "gradient_accumulation_steps": run_config.gradient_accumulation,
        "learning_rate": training.rate,
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "seed": training.seed,
        "use_cpu": not run_config.cuda,
        **_precision(training.dtype, cuda=run_config.cuda),
        "train_sampling_strategy": "group_by_length",
        "logging_steps": _LOGGED,
        "logging_nan_inf_filter": False,
        "eval_strategy": "epoch" if evaluates else "no",
        "save_strategy": "epoch",
        # The best, the last whole one, and one that may be half written when the process is killed.
        "save_total_limit": 3,
        "load_best_model_at_end": evaluates,
        "metric_for_best_model": metric,
        "greater_is_better": None if metric is None else metric not in LESS_IS_BETTER,
        "restore_callback_states_from_checkpoint": training.early_stopping is not None,
        "dataloader_pin_memory": run_config.cuda,
        "disable_tqdm": True,
        "report_to": "none",
    }


def _precision(dtype: str | None, *, cuda: bool) -> dict[str, bool]:
    """Return which half precision to compute in; the weights themselves stay in float32."""
    if dtype == "float16" and not cuda:
        raise ModelError("bad_param", "--dtype float16 needs a GPU; on the CPU there are float32 and bfloat16.")
    if dtype is None and cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = "bfloat16"
    return {"bf16": dtype == "bfloat16", "fp16": dtype == "float16"}
