"""Grouped help: a command whose options have headings, and hints for the options of other tools."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

#: Command -> option of another tool -> what to use instead.
HINTS: Mapping[str, Mapping[str, str]] = {
    "submit": {
        "--batch-size": "Workers choose batch sizes automatically; --chunk-size sets the records per chunk.",
        "--fp16": "Did you mean --dtype float16?",
        "--bf16": "Did you mean --dtype bfloat16?",
        "--precision": "Did you mean --dtype?",
        "--gpu": "Did you mean --device gpu?",
        "--cpu": "Did you mean --device cpu?",
        "--max-samples": "Did you mean --limit?",
        "--text-column": "Did you mean --column?",
        "--prompt": "Did you mean --template?",
        "--prompt-column": "Did you mean --column or --template?",
        "--system-prompt": "Did you mean --system?",
        "--top-k": "Set parameters of the task with -p: -p top_k=3.",
        "--max-new-tokens": "Set parameters of the task with -p: -p max_new_tokens=50.",
        "--out": "Did you mean --output?",
        "--output-dir": "Did you mean --output DIR/?",
        "--output-file": "Did you mean --output?",
        "--lr": "It is an option of training: `producer finetune --learning-rate`.",
    },
    "finetune": {
        "--lr": "Did you mean --learning-rate?",
        "--num-train-epochs": "Did you mean --epochs?",
        "--per-device-train-batch-size": "Did you mean --batch-size?",
        "--gradient-accumulation-steps": "Did you mean --gradient-accumulation?",
        "--fp16": "Did you mean --dtype float16?",
        "--bf16": "Did you mean --dtype bfloat16?",
        "--device": "The worker trains on all of its GPUs, or its CPU; --gpus limits them.",
        "--limit": "All examples are used; shorten the file instead.",
        "--output": "The job stores the model: `producer models export job:ID DIRECTORY` copies it.",
        "--output-dir": "The job stores the model: `producer models export job:ID DIRECTORY` copies it.",
        "--column": "Did you mean --text-column?",
    },
}


class GroupedCommand(click.Command):
    """A command whose help lists options under headings, and which knows the names of options in other tools."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their groups."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(getattr(param, "heading", "Other"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; for an option of another tool, the error explains what to use instead."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = HINTS.get(str(self.name), {}).get(error.option_name.replace("_", "-"))
            if hint is None:
                raise
            raise click.UsageError(f"No such option: {error.option_name}. {hint}", ctx) from error


def option_group(heading: str, *options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds these options to a command, under a heading of its help."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
            getattr(command, "__click_params__")[-1].heading = heading  # noqa: B009 - set by Click
        return command

    return decorate
