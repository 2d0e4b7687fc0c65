"""`producer finetune`: submits a fine-tune job."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from common.training.options import DTYPES, TrainingOptions
from common.training.reporters import REPORTERS
from producer.cli.grouped_command import GroupedCommand, option_group
from producer.cli.options import (
    after_any_option,
    after_option,
    keep_alive_option,
    label_option,
    name_option,
    notify_option,
    param_option,
    priority_option,
    quoting_option,
    revision_option,
    task_option,
)
from producer.cli.session import open_client
from producer.cli.terminal import notify
from producer.cli.text_option import text_option

F = TypeVar("F", bound=Callable[..., Any])


class _Dimensions(click.ParamType[list[int]]):
    """Whole numbers, separated by commas."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the numbers."""
        try:
            return [int(number) for number in str(value).split(",")]
        except ValueError:
            self.fail(f"expected whole numbers separated by commas, such as 768,256, found {value!r}.", param, ctx)


_DEFAULTS = TrainingOptions()


def _number(name: str, kind: type, text: str) -> Callable[[F], F]:
    """Return the option for this field of `TrainingOptions`, with its default."""
    field = name.removeprefix("--").replace("-", "_")
    default = getattr(_DEFAULTS, field)
    return click.option(name, type=kind, default=default, show_default=default is not None, help=text)


@click.command(cls=GroupedCommand, no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="TRAIN...")
@option_group(
    "Input",
    task_option(
        default="text-classification",
        show_default=True,
        help="text-classification, token-classification, fill-mask, text-generation, embedding or rerank.",
    ),
    click.option("--eval", "evaluation", metavar="FILE", help="Evaluate on these examples after each epoch."),
    click.option(
        "--eval-split", type=float, metavar="SHARE", help="Hold out this share of TRAIN for evaluation, such as 0.1."
    ),
    click.option(
        "--text-column",
        metavar="NAME",
        help="Column of the text (words, prompt); for embedding and rerank several, separated by commas.  "
        "[default: text]",
    ),
    text_option("--template", "Text made from columns, such as '{title}: {body}', instead of --text-column."),
    click.option(
        "--label-column", metavar="NAME", help="Column of the label (tags, completion, score).  [default: label]"
    ),
    click.option(
        "--format",
        type=click.Choice(["txt", "jsonl", "json", "csv", "tsv", "parquet"]),
        help="Input format, if the extension does not show it.",
    ),
    quoting_option,
)
@option_group(
    "Model",
    click.option("-m", "--model", "--model-id", required=True, metavar="ID|PATH|job:ID", help="The base model."),
    revision_option,
)
@option_group(
    "Training",
    _number("--epochs", float, "Number of passes over the training data."),
    _number("--batch-size", int, "Examples per device and batch."),
    _number("--gradient-accumulation", int, "Batches per optimizer step."),
    _number(
        "--learning-rate",
        float,
        "Peak learning rate.  [default: 5e-5, with --lora 2e-4; for preferences 1e-6 and 5e-6]",
    ),
    _number("--warmup", float, "Share of steps (1 or more: number of steps) for learning-rate warmup."),
    _number("--weight-decay", float, "Weight decay."),
    _number("--max-length", int, "Maximum tokens per example.  [default: the model's limit]"),
    _number("--early-stopping", int, "Stop after this many evaluations without improvement."),
    click.option(
        "--metric-for-best", metavar="NAME", help="Metric that selects the best checkpoint.  [default: the task's]"
    ),
    click.option("--loss", metavar="NAME", help="Loss of embedding or rerank.  [default: depends on the examples]"),
    click.option(
        "--matryoshka-dims",
        type=_Dimensions(),
        metavar="N,N",
        help="For embedding: dimensions to which vectors may later be truncated, such as 768,256.",
    ),
    _number("--seed", int, "Random seed."),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        help="Data type for training.  [default: bfloat16 if the GPU supports it]",
    ),
    click.option(
        "--report-to",
        multiple=True,
        type=click.Choice(REPORTERS),
        help="Also report to this program, if the worker allows it (HUGQUEUE_REPORT_TO); repeatable.",
    ),
    _number("--gpus", int, "Training processes, one per GPU (or on the CPU).  [default: all GPUs of the worker]"),
    param_option("Any other field of TrainingArguments (SFTConfig, DPOConfig), such as lr_scheduler_type=cosine."),
)
@option_group(
    "LoRA",
    click.option("--lora", is_flag=True, help="Train LoRA adapters instead of all weights."),
    _number("--lora-r", int, "LoRA rank."),
    _number("--lora-alpha", int, "LoRA alpha; adapters are scaled by alpha / rank."),
    _number("--lora-dropout", float, "LoRA dropout."),
    click.option(
        "--merge/--no-merge",
        default=True,
        help="Merge the adapters into the model, or store them alone.  [default: merge]",
    ),
)
@option_group(
    "Job",
    priority_option,
    name_option,
    label_option(),
    after_option,
    after_any_option,
    click.option("--wait", is_flag=True, help="Wait for the job to finish."),
    notify_option,
    keep_alive_option,
)
def finetune(inputs: tuple[str, ...], labels: tuple[str, ...], keep_alive: str | None, **options: Any) -> None:
    """Fine-tune a model on examples.

    TRAIN is a .csv, .tsv, .jsonl, .json, .parquet or .txt file, - for standard input, a URL such as
    s3://bucket/reviews/*.parquet, or a dataset on the Hub, hf:NAME[:CONFIG][:SPLIT].

    \b
    Columns, by task:
      text-classification   text, label: words or integers (classes), decimal
                            numbers (regression), lists (several classes)
      token-classification  tokens, tags
      fill-mask             text
      text-generation       text; prompt, completion; messages (a chat); or
                            prompt, chosen, rejected (DPO)
      embedding             anchor, positive[, negative]; or
                            sentence1, sentence2, score
      rerank                query, document, label

    Prints the job id. The trained model is job:ID, for `submit`, `models export` or another `finetune`. Jobs that are
    submitted with it before the training has ended wait for that.

    \b
      producer finetune reviews.csv --model bert-base-uncased --eval-split 0.1
      producer finetune tags.jsonl --task token-classification -m xlm-roberta-base
      producer finetune domain.txt --task fill-mask -m roberta-base --epochs 1
      producer finetune chats.jsonl --task text-generation -m Qwen/Qwen3-0.6B
      producer finetune questions.jsonl --task embedding -m BAAI/bge-m3
      producer submit --task text-classification --model job:ID new.txt

    \b
    Exit status:
      0    the job completed (or, without waiting, was accepted)
      1    the job failed or was cancelled
      2    invalid usage or input
      130  Ctrl-C
    """
    from producer.cli.run_finetune import run_finetune
    from producer.finetune.options import FinetuneOptions
    from producer.finetune.plan import make_finetune_plan
    from producer.job_filter import parse_labels

    plan = make_finetune_plan(inputs, FinetuneOptions.of(labels=parse_labels(labels), **options))
    with open_client(with_worker=True, replace_outdated=True, keep_alive=keep_alive) as client:
        sys.exit(run_finetune(client, plan, notify))
