"""What a fine-tune job sets of transformers' `TrainingArguments`: nothing names a file, nothing is without bound."""

import dataclasses
import os
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoderTrainingArguments, SentenceTransformerTrainingArguments
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from common.errors import ModelError, UsageError
from common.params import parse_params
from common.records import Json
from common.training.options import TrainingOptions
from common.training.trainer_arguments import FORBIDDEN
from workers.training.trainer.arguments import _check_fields

#: Free text: options of an optimizer, and a pattern of the names of layers.
TEXTS = {"optim_args", "optim_target_modules"}
CLASSES = (
    TrainingArguments, SFTConfig, DPOConfig, SentenceTransformerTrainingArguments, CrossEncoderTrainingArguments,
)  # fmt: skip
FIELDS = sorted({field.name for kind in CLASSES for field in dataclasses.fields(kind)} - FORBIDDEN.keys())


def decode(**arguments: Json) -> TrainingOptions:
    """Check arguments as the producer does, then as the worker does."""
    options = TrainingOptions.decode({"arguments": arguments})
    _check_fields(options.arguments)
    return options


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_takes_a_path(name: str, tmp_path: Path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for value in (str(pipe), f"{{{pipe}", "../x.json", [str(pipe)] if name not in TEXTS else "{"):
        if name in TEXTS:
            TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})  # would wait for the pipe
            continue
        with pytest.raises(UsageError, match=f"-p {name}= must be"):
            decode(**{name: value})


def test_fields_of_trl_are_for_conversations_alone():
    options = TrainingOptions.decode({"arguments": {"beta": 0.2, "loss_type": "ipo", "precompute_ref_log_probs": True}})
    _check_fields(options.arguments, DPOConfig)
    with pytest.raises(ModelError, match="SFTConfig has no field of that name"):
        _check_fields({"beta": 0.2}, SFTConfig)
    with pytest.raises(ModelError, match="TrainingArguments has no field"):
        _check_fields({"beta": 0.2})


def test_a_field_for_an_object_takes_no_text():
    with pytest.raises(ModelError, match="accelerator_config"):
        decode(accelerator_config="name")


@pytest.mark.parametrize("value", [-1, 33, 10**6, 2**70, True, "8", 1.5, None])
def test_the_processes_that_load_data_are_bounded(value: Json):
    with pytest.raises(UsageError, match="from 0 to 32"):
        decode(dataloader_num_workers=value)


def test_a_json_argument_is_read_as_transformers_reads_it(tmp_path: Path):
    options = decode(
        **parse_params(['accelerator_config={"split_batches": true}', "eval_strategy=no", "optim_args=rank=8"])
    )
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options.arguments)
    assert arguments.accelerator_config.split_batches
    assert arguments.optim_args == "rank=8"


def test_every_default_of_transformers_is_taken(tmp_path: Path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True).to_dict()
    for name in arguments.keys() & FIELDS:
        if arguments[name] is not None or name not in (
            "dataloader_prefetch_factor",
            "ddp_bucket_cap_mb",
            "save_total_limit",
        ):
            decode(**{name: arguments[name]})


def test_every_refused_field_exists():
    assert FORBIDDEN.keys() <= {field.name for kind in CLASSES for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr_sheduler_type": "cosine"}, "Did you mean lr_scheduler_type"),
        ({"lerning_rate": 1}, "Did you mean learning_rate"),
        ({"logging_steps": "many"}, "expected"),
        ({"adam_beta1": True}, "expected"),
    ],
)
def test_the_worker_names_a_wrong_field_or_value(arguments: dict[str, Json], words: str):
    with pytest.raises(ModelError, match=words) as caught:
        decode(**arguments)
    assert caught.value.code == "bad_param"
