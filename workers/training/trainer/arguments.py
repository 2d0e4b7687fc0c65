"""`TrainingArguments` of a run: the job's options, over defaults that make fine-tuning fast and safe."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments

from common.errors import ModelError
from common.records import Json
from common.suggestions import did_you_mean
from common.training.kinds import Example
from common.training.labels import Labels
from common.training.metrics import LESS_IS_BETTER, metrics_of
from common.training.options import TrainingOptions
from workers.training.run_config import TrainingRunConfig
from workers.training.trainer.job_trainer import TrainerKind

#: Share of all steps between two points of the loss curve.
_LOGGING_SHARE = 0.01


def build_training_arguments(config: TrainingRunConfig, kind: TrainerKind, metric: str | None) -> TrainingArguments:
    """Return the arguments of this run.

    Args:
        config: the job and where it runs.
        kind: the trainer that takes them.
        metric: chooses the best checkpoint; None: there is no evaluation set.

    Raises:
        ModelError: `bad_param`, transformers has no such field or rejects a value.
    """
    own = config.options.arguments
    _check_fields(own, kind.arguments)
    values = {**_defaults(config, kind, metric), **kind.defaults, **own}
    if values["load_best_model_at_end"]:  # then transformers requires a checkpoint for each evaluation
        values["save_strategy"] = own.get("save_strategy", values["eval_strategy"])
        if "eval_steps" in values:
            values.setdefault("save_steps", values["eval_steps"])
    try:
        arguments = kind.arguments(**values)
        arguments.get_process_log_level()  # raises KeyError for an unknown level, otherwise Trainer would
    except (KeyError, TypeError, ValueError, ImportError) as error:
        raise ModelError("bad_param", f"transformers rejects these arguments: {error}"[:1000]) from error
    return arguments


def _check_fields(arguments: Mapping[str, Json], kind: type[TrainingArguments] = TrainingArguments) -> None:
    """Check names and types of further arguments against the installed library.

    Values that could name a file were refused by `common.training.trainer_arguments`; a field that also takes the path
    of a JSON file (`dict | str`) takes an object only.
    """
    types = get_type_hints(kind)
    for name, value in arguments.items():
        if name not in types:
            near = did_you_mean(name, types)
            raise ModelError("bad_param", f"-p {name}=: {kind.__name__} has no field of that name. {near}")
        kinds = get_args(types[name]) or (types[name],)
        is_object = any((get_origin(kind) or kind) is dict for kind in kinds)
        if not any(_is_of(value, kind) for kind in kinds if not (is_object and kind is str)):
            raise ModelError("bad_param", f"-p {name}=: expected {types[name]}, found {value!r:.200}.")


def _is_of(value: Json, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is (get_origin(kind) or kind)


def best_metric(labels: Labels, evaluation: Sequence[Example], options: TrainingOptions) -> str | None:
    """Return the metric that chooses the best checkpoint: the job's, or the first that is measured, if any is."""
    if not evaluation:
        return None
    return (options.metric_for_best or metrics_of(labels, evaluation)[0]).removeprefix("eval_")


def _defaults(config: TrainingRunConfig, kind: TrainerKind, metric: str | None) -> dict[str, Any]:
    options = config.options
    rate = kind.learning_rates[options.lora] if options.learning_rate is None else options.learning_rate
    return {
        "output_dir": config.work_dir,
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": max(config.batch_size, 16),
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": rate,
        "warmup_steps": options.warmup,
        "weight_decay": options.weight_decay,
        "seed": options.seed,
        "use_cpu": not config.cuda,
        **_precision(options.dtype, cuda=config.cuda),
        "train_sampling_strategy": "group_by_length",
        "logging_steps": _LOGGING_SHARE,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no" if metric is None else "epoch",
        "save_strategy": "epoch",
        # The best, the last complete one, and one that may be half written when the process is killed.
        "save_total_limit": 3,
        "load_best_model_at_end": metric is not None,
        "metric_for_best_model": metric,
        "greater_is_better": None if metric is None else metric not in LESS_IS_BETTER,
        "restore_callback_states_from_checkpoint": options.early_stopping is not None,
        "dataloader_pin_memory": config.cuda,
        "disable_tqdm": True,
        "report_to": list(options.report_to) or "none",
        "run_name": f"{config.job.name}-{config.job.id}" if config.job.name else config.job.id,
        "project": "hugqueue",
    }


def _precision(dtype: str | None, *, cuda: bool) -> dict[str, bool]:
    """Return which half precision to compute in; the weights stay in float32."""
    if dtype == "float16" and not cuda:
        raise ModelError("bad_param", "--dtype float16 needs a GPU; the CPU supports float32 and bfloat16.")
    if dtype is None and cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = "bfloat16"
    return {"bf16": dtype == "bfloat16", "fp16": dtype == "float16"}
