"""What a fine-tune job sets of transformers' `TrainingArguments`: nothing names a file, nothing is without bound."""

import os
from pathlib import Path

import pytest
from transformers import TrainingArguments

from common.errors import UsageError
from common.params import parse_params
from common.records import Json
from common.training.options import TrainingOptions
from common.training.trainer_arguments import FIELDS

#: Fields that are read as text: options of an optimizer, and a pattern of the names of layers.
TEXTS = {"optim_args", "optim_target_modules"}


def decode(**arguments: Json) -> TrainingOptions:
    return TrainingOptions.decode({"arguments": arguments})


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_field_takes_a_path(name: str, tmp_path: Path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for value in (str(pipe), f"{{{pipe}", "../x.json", [str(pipe)] if name not in TEXTS else "{"):
        if name in TEXTS:
            TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})  # would wait for the pipe
            continue
        with pytest.raises(UsageError, match=f"-p {name}= must be"):
            decode(**{name: value})


@pytest.mark.parametrize("value", [-1, 33, 10**6, 2**70, True, "8", 1.5, None])
def test_the_processes_that_load_data_are_bounded(value: Json):
    with pytest.raises(UsageError, match="from 0 to 32"):
        decode(dataloader_num_workers=value)


def test_a_configuration_in_place_is_taken_as_transformers_reads_it(tmp_path: Path):
    options = ['accelerator_config={"split_batches": true}', "eval_strategy=no", "optim_args=rank=8"]
    training = decode(**parse_params(options, FIELDS))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **training.arguments)
    assert arguments.accelerator_config.split_batches
    assert arguments.optim_args == "rank=8"


def test_every_default_of_transformers_is_taken(tmp_path: Path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True).to_dict()
    decode(**{name: arguments[name] for name in FIELDS})
