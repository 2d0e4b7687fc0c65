"""`producer finetune`."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from common.training.options import DTYPES, TrainingOptions
from producer.cli.grouped_command import GroupedCommand
from producer.cli.options import (
    keep_alive_option,
    label_option,
    name_option,
    priority_option,
    quoting_option,
    revision_option,
    task_option,
)
from producer.cli.session import open_client
from producer.cli.terminal import notify

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = TrainingOptions()


def _number(name: str, kind: type, text: str) -> Callable[[F], F]:
    """Return the option of that field of `Training`, with its default."""
    field = name.removeprefix("--").replace("-", "_")
    default = getattr(_DEFAULTS, field)
    return click.option(name, type=kind, default=default, show_default=default is not None, help=text)


_GROUPS = {
    "Input": ("--task", "--eval", "--eval-split", "--text-column", "--label-column", "--format", "--quoting"),
    "Model": ("-m", "--revision"),
    "TrainingOptions": (
        "--epochs",
        "--batch-size",
        "--gradient-accumulation",
        "--learning-rate",
        "--warmup",
        "--weight-decay",
        "--max-length",
        "--early-stopping",
        "--metric-for-best",
        "--seed",
        "--dtype",
        "--gpus",
        "-p",
    ),
    "LoRA": ("--lora", "--lora-r", "--lora-alpha", "--lora-dropout"),
    "Job": ("--priority", "--name", "-l", "--wait", "--keep-alive"),
}


@click.command(cls=GroupedCommand, groups=_GROUPS, no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="TRAIN...")
@task_option(
    default="text-classification",
    show_default=True,
    help="text-classification, token-classification, fill-mask or text-generation.",
)
@click.option("-m", "--model", "--model-id", required=True, metavar="ID|PATH|job:ID", help="The model to begin with.")
@revision_option
@click.option("--eval", "evaluation", metavar="FILE", help="Examples to evaluate with, after each epoch.")
@click.option("--eval-split", type=float, metavar="SHARE", help="Hold out that share of TRAIN for evaluation, as 0.1.")
@click.option("--text-column", metavar="NAME", help="The column of the text (words, prompt).  [default: text]")
@click.option("--label-column", metavar="NAME", help="The column of the label (tags, completion).  [default: label]")
@_number("--epochs", float, "How often to go over all examples.")
@_number("--batch-size", int, "Examples at once on one device.")
@_number("--gradient-accumulation", int, "Batches of one step.")
@_number("--learning-rate", float, "The highest one.  [default: 5e-5, with --lora 2e-4]")
@_number("--warmup", float, "Share of the steps (from 1 on: steps) up to the highest learning rate.")
@_number("--weight-decay", float, "Pull of the weights towards zero.")
@_number("--max-length", int, "Tokens of one example at most.  [default: what the model takes]")
@_number("--seed", int, "Random seed.")
@click.option("--dtype", type=click.Choice(DTYPES), help="To compute in.  [default: bfloat16 where the GPU has it]")
@click.option("--lora", is_flag=True, help="Train a small addition to each layer instead of all weights.")
@_number("--lora-r", int, "Rank of the additions.")
@_number("--lora-alpha", int, "LoRA's alpha: the additions are scaled by alpha / rank.")
@_number("--lora-dropout", float, "Share of their inputs left out.")
@_number("--early-stopping", int, "End after so many evaluations without a better metric.")
@click.option("--metric-for-best", metavar="NAME", help="Keep the model that is best by this.  [default: the task's]")
@_number("--gpus", int, "Processes to train with, one for each GPU (or on the CPU).  [default: all GPUs of the worker]")
@click.option(
    "-p",
    "--param",
    "params",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any further field of transformers' TrainingArguments, as lr_scheduler_type=cosine.",
)
@click.option(
    "--format", "format_", type=click.Choice(["txt", "jsonl", "json", "csv", "tsv", "parquet"]), help="Of the files."
)
@quoting_option
@priority_option
@name_option
@label_option()
@click.option("--wait", is_flag=True, help="Wait for the end.")
@keep_alive_option
def finetune(inputs: tuple[str, ...], labels: tuple[str, ...], keep_alive: str | None, **options: Any) -> None:
    """Fine-tune a model on examples, as a job.

    TRAIN is a .csv, .tsv, .jsonl, .json, .parquet or .txt file with a text and a label in each row, or a data set of
    the hub as hf:NAME or hf:NAME:SPLIT, which the worker loads. Labels are words or whole numbers (classes), numbers
    with a fraction (regression), or lists (several classes each).

    Prints the job's id. The model is then job:ID: for `submit`, for a further `finetune`, for `models export`.

    \b
      producer finetune reviews.csv --model bert-base-uncased --eval-split 0.1
      producer finetune tags.jsonl --task token-classification -m xlm-roberta-base
      producer finetune domain.txt --task fill-mask -m roberta-base --epochs 1
      producer submit --task text-classification --model job:ID new.txt

    \b
    Exit status:
      0    done (or, without waiting, the job was accepted)
      1    the job failed or was cancelled
      2    wrong usage or input
      130  after Ctrl-C
    """
    from producer.cli.run_finetune import run_finetune
    from producer.finetune.plan import make_finetune_plan
    from producer.job_filter import parse_labels

    plan = make_finetune_plan(inputs, labels=parse_labels(labels), **options)
    with open_client(working=True, replace_outdated=True, keep_alive=keep_alive) as client:
        sys.exit(run_finetune(client, plan, notify))
