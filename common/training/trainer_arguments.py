"""The fields of transformers' `TrainingArguments` (5.23) that `-p KEY=VALUE` of a fine-tune job may name, or may not.

Kept as a table, so that the producer checks names and values without transformers; a test compares it with the class.
No value names a file of the worker's machine, and none that makes processes or memory is unbounded.
"""

from collections.abc import Mapping

from common.params import (
    BOOLEAN,
    FRACTION,
    INTEGER,
    NON_NEGATIVE_INTEGER,
    NUMBER,
    OBJECT,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    TEXT,
    TEXTS,
    ParamType,
    either,
    number,
    one_of,
)


def _up_to(least: int, most: int) -> ParamType:
    return ParamType(
        f"a whole number from {least} to {most}", lambda value: INTEGER.accepts(value) and least <= value <= most
    )


_OBJECT = either(OBJECT, None)
_FLAG = either(BOOLEAN, None)
_STEPS = number(above=0)
_STRATEGY = one_of("no", "steps", "epoch")
_LEVEL = one_of("passive", "detail", "debug", "info", "warning", "error", "critical")
_NAME = ParamType("a name", lambda value: isinstance(value, str) and value.replace("-", "_").isidentifier(), parse=str)

#: Those that may be set, with their types.
FIELDS: Mapping[str, ParamType] = {
    "accelerator_config": _OBJECT,
    "activation_checkpointing": _FLAG,
    "activation_checkpointing_kwargs": _OBJECT,
    "adam_beta1": FRACTION,
    "adam_beta2": FRACTION,
    "adam_epsilon": POSITIVE_NUMBER,
    "average_tokens_across_devices": BOOLEAN,
    "bf16_full_eval": BOOLEAN,
    "data_seed": either(NON_NEGATIVE_INTEGER, None),
    "dataloader_drop_last": BOOLEAN,
    "dataloader_in_order": BOOLEAN,
    "dataloader_multiprocessing_context": either(one_of("fork", "spawn", "forkserver"), None),
    "dataloader_num_workers": _up_to(0, 32),
    "dataloader_persistent_workers": BOOLEAN,
    "dataloader_pin_memory": BOOLEAN,
    "dataloader_prefetch_factor": either(_up_to(1, 64), None),
    "ddp_backend": either(_NAME, None),
    "ddp_broadcast_buffers": _FLAG,
    "ddp_bucket_cap_mb": either(_up_to(1, 4096), None),
    "ddp_find_unused_parameters": _FLAG,
    "ddp_static_graph": _FLAG,
    "ddp_timeout": _up_to(1, 86_400),
    "eval_accumulation_steps": either(POSITIVE_INTEGER, None),
    "eval_delay": number(0),
    "eval_on_start": BOOLEAN,
    "eval_steps": either(_STEPS, None),
    "eval_strategy": _STRATEGY,
    "eval_use_gather_object": BOOLEAN,
    "fp16_full_eval": BOOLEAN,
    "full_determinism": BOOLEAN,
    "gradient_checkpointing": _FLAG,
    "gradient_checkpointing_kwargs": _OBJECT,
    "include_num_input_tokens_seen": either(one_of("all", "non_padding", "no"), True, False),
    "label_smoothing_factor": FRACTION,
    "length_column_name": _NAME,
    "liger_kernel_config": _OBJECT,
    "load_best_model_at_end": BOOLEAN,
    "log_level": _LEVEL,
    "log_level_replica": _LEVEL,
    "log_on_each_node": BOOLEAN,
    "logging_first_step": BOOLEAN,
    "logging_steps": _STEPS,
    "logging_strategy": _STRATEGY,
    "lr_scheduler_kwargs": _OBJECT,
    "lr_scheduler_type": _NAME,
    "max_grad_norm": number(0),
    "max_steps": INTEGER,
    "neftune_noise_alpha": either(NUMBER, None),
    "optim": _NAME,
    "optim_args": either(TEXT, None),
    "optim_target_modules": either(TEXTS, None),
    "per_device_eval_batch_size": _up_to(1, 1_000_000),
    "restore_callback_states_from_checkpoint": BOOLEAN,
    "save_steps": _STEPS,
    "save_strategy": one_of("no", "steps", "epoch", "best"),
    "save_total_limit": either(_up_to(1, 1000), None),
    "skip_memory_metrics": BOOLEAN,
    "tf32": _FLAG,
    "torch_compile": BOOLEAN,
    "torch_compile_backend": either(_NAME, None),
    "torch_compile_mode": either(_NAME, None),
    "torch_empty_cache_steps": either(POSITIVE_INTEGER, None),
    "train_sampling_strategy": _NAME,
    "use_cache": BOOLEAN,
    "use_liger_kernel": BOOLEAN,
}

#: Those that may not, and why.
FORBIDDEN = {
    "output_dir": "the model store decides where checkpoints go",
    "per_device_train_batch_size": "use --batch-size",
    "num_train_epochs": "use --epochs",
    "learning_rate": "use --learning-rate",
    "warmup_steps": "use --warmup",
    "weight_decay": "use --weight-decay",
    "gradient_accumulation_steps": "use --gradient-accumulation",
    "seed": "use --seed",
    "bf16": "use --dtype bfloat16",
    "fp16": "use --dtype float16",
    "metric_for_best_model": "use --metric-for-best",
    "greater_is_better": "it follows from --metric-for-best",
    "resume_from_checkpoint": "a job goes on from its own checkpoints by itself",
    "auto_find_batch_size": "the batch is halved by itself where memory runs out",
    "enable_jit_checkpoint": "a stopped worker writes a checkpoint by itself",
    "use_cpu": "the worker decides what it runs on",
    "local_rank": "the worker decides what it runs on",
    "deepspeed": "it names files of the worker's machine",
    "fsdp": "it is not tried",
    "fsdp_config": "it names files of the worker's machine",
    "parallelism_config": "it is not tried",
    "push_to_hub": "a worker has no business on the hub; `producer models export` brings the model out",
    "hub_token": "secrets do not travel in jobs",
    "logging_nan_inf_filter": "a loss that is not a number ends the job",
    "disable_tqdm": "progress is shown by `producer watch`",
    "remove_unused_columns": "columns are prepared by the task",
    "label_names": "columns are prepared by the task",
    "eval_do_concat_batches": "metrics need it",
    "prediction_loss_only": "metrics need it",
    "batch_eval_metrics": "metrics need it",
    "include_for_metrics": "metrics need it",
    "debug": "it is for the terminal",
    "save_only_model": "a job could not go on from such a checkpoint",
    "save_on_each_node": "a job runs on one machine",
    "ignore_data_skip": "a job that goes on would see other examples",
    "hub_private_repo": "a worker reports to the queue alone",
    "hub_model_id": "a worker reports to the queue alone",
    "hub_strategy": "a worker reports to the queue alone",
    "hub_always_push": "a worker reports to the queue alone",
    "hub_revision": "a worker reports to the queue alone",
    "trackio_space_id": "a worker reports to the queue alone",
    "trackio_bucket_id": "a worker reports to the queue alone",
    "trackio_static_space_id": "a worker reports to the queue alone",
    "report_to": "a worker reports to the queue alone",
    "run_name": "a worker reports to the queue alone",
    "project": "a worker reports to the queue alone",
    "do_train": "Trainer itself does not look at it",
    "do_eval": "Trainer itself does not look at it",
    "do_predict": "Trainer itself does not look at it",
}
