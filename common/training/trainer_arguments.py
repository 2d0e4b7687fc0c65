"""Further fields of transformers' `TrainingArguments`, as `-p NAME=VALUE`: what is refused without transformers.

So are those of the classes that TRL and sentence-transformers derive from it. No value may name a file of the worker's
machine, and values that create processes or take memory are bounded. The worker checks against the installed class
whether a field exists and accepts its value.
"""

import re
from collections.abc import Mapping

from common.errors import UsageError
from common.records import Json

#: Fields that hold free text, which transformers never opens as a file.
_FREE_TEXT = ("optim_args", "optim_target_modules")
_NAME = re.compile(r"[\w-]+\Z", re.ASCII)
#: Fields that must be bounded: lowest and highest value.
_RANGES: Mapping[str, tuple[int, int]] = {
    "dataloader_num_workers": (0, 32),
    "dataloader_prefetch_factor": (1, 64),
    "precompute_ref_batch_size": (1, 1_000_000),
    "ddp_bucket_cap_mb": (1, 4096),
    "ddp_timeout": (1, 86_400),
    "per_device_eval_batch_size": (1, 1_000_000),
    "save_total_limit": (1, 1000),
}
#: Fields that a job may not set, and why.
FORBIDDEN: Mapping[str, str] = {
    "output_dir": "the model registry decides where checkpoints go",
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
    "resume_from_checkpoint": "a job resumes from its own checkpoints automatically",
    "auto_find_batch_size": "the batch is halved automatically when memory runs out",
    "enable_jit_checkpoint": "a stopped worker writes a checkpoint automatically",
    "use_cpu": "the worker decides what it runs on",
    "local_rank": "the worker decides what it runs on",
    "deepspeed": "it names files of the worker's machine",
    "fsdp": "it is not supported",
    "fsdp_config": "it names files of the worker's machine",
    "parallelism_config": "it is not supported",
    "push_to_hub": "workers do not upload; use `producer models export`",
    "hub_token": "jobs must not hold secrets",
    "logging_nan_inf_filter": "a non-finite loss ends the job",
    "disable_tqdm": "progress is shown by `producer watch`",
    "remove_unused_columns": "columns are prepared by the task",
    "label_names": "columns are prepared by the task",
    "eval_do_concat_batches": "metrics need it",
    "prediction_loss_only": "metrics need it",
    "batch_eval_metrics": "metrics need it",
    "include_for_metrics": "metrics need it",
    "debug": "it is for the terminal",
    "save_only_model": "a job could not resume from such a checkpoint",
    "save_on_each_node": "a job runs on one machine",
    "ignore_data_skip": "a resumed job would see other examples",
    "hub_private_repo": "workers write nothing to the Hub",
    "hub_model_id": "workers write nothing to the Hub",
    "hub_strategy": "workers write nothing to the Hub",
    "hub_always_push": "workers write nothing to the Hub",
    "hub_revision": "workers write nothing to the Hub",
    "trackio_space_id": "workers write nothing to the Hub",
    "trackio_bucket_id": "workers write nothing to the Hub",
    "trackio_static_space_id": "workers write nothing to the Hub",
    "report_to": "use --report-to",
    "run_name": "it is the job's name and id",
    "project": "it is up to the worker",
    "do_train": "Trainer ignores it",
    "do_eval": "Trainer ignores it",
    "do_predict": "Trainer ignores it",
    # Of sentence-transformers.
    "prompts": "those of the base model are used; for others, put them into the texts",
    "router_mapping": "it follows from the examples",
    "learning_rate_mapping": "use --learning-rate",
    "multi_dataset_batch_sampler": "a job has one set of examples",
    # Of TRL.
    "model_init_kwargs": "the worker loads the model",
    "trust_remote_code": "the worker decides what code runs",
    "chat_template_path": "it names a file of the worker's machine",
    "dataset_text_field": "columns are prepared by the task",
    "dataset_kwargs": "columns are prepared by the task",
    "dataset_num_proc": "columns are prepared by the task",
    "eos_token": "the tokenizer has it",
    "pad_token": "the tokenizer has it",
    "max_length": "use --max-length",
    "truncation_mode": "the task decides what is cut",
    "shuffle_dataset": "Trainer shuffles",
    "packing": "it is not supported",
    "packing_strategy": "it is not supported",
    "eval_packing": "it is not supported",
    "padding_free": "it is not supported",
    "pad_to_multiple_of": "it is not supported",
    "completion_only_loss": "give a prompt and a completion",
    "assistant_only_loss": "of a chat, only the assistant's words are learned",
    "sync_ref_model": "a resumed job would lose the reference",
    "ref_model_mixup_alpha": "a resumed job would lose the reference",
    "ref_model_sync_steps": "a resumed job would lose the reference",
}


def check_argument(name: str, value: Json) -> None:
    """Check that a job may set a field of `TrainingArguments` to a value.

    Raises:
        UsageError: It has an option of its own, is up to the worker, could name a file, or is out of bounds.
    """
    if name in FORBIDDEN:
        raise UsageError(f"-p {name}= cannot be set: {FORBIDDEN[name]}.")
    if name in _RANGES:
        low, high = _RANGES[name]
        if type(value) is not int or not low <= value <= high:
            raise UsageError(f"-p {name}= must be a whole number from {low:,} to {high:,}, found {value!r:.200}.")
    elif name not in _FREE_TEXT and (isinstance(value, list) or (isinstance(value, str) and not _NAME.match(value))):
        raise UsageError(f"-p {name}= must be a name, a number, true, false, null or an object, found {value!r:.200}.")
