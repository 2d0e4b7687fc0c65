"""A command whose help stands in groups, and which knows what people call its options elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

#: What is said of options that other tools have, by command.
HINTS: Mapping[str, Mapping[str, str]] = {
    "submit": {
        "--batch-size": "Workers size their batches by themselves; --chunk-size says how many records one takes.",
        "--fp16": "Did you mean --dtype float16?",
        "--bf16": "Did you mean --dtype bfloat16?",
        "--precision": "Did you mean --dtype?",
        "--gpu": "Did you mean --device gpu?",
        "--cpu": "Did you mean --device cpu?",
        "--max-samples": "Did you mean --limit?",
        "--text-column": "Did you mean --column?",
        "--top-k": "Parameters of the task are given by -p: -p top_k=3.",
        "--max-new-tokens": "Parameters of the task are given by -p: -p max_new_tokens=50.",
        "--out": "Did you mean --output?",
        "--output-dir": "Did you mean --output DIR/?",
        "--output-file": "Did you mean --output?",
        "--lr": "That is for training: `producer finetune --learning-rate`.",
    },
    "finetune": {
        "--lr": "Did you mean --learning-rate?",
        "--num-train-epochs": "Did you mean --epochs?",
        "--per-device-train-batch-size": "Did you mean --batch-size?",
        "--gradient-accumulation-steps": "Did you mean --gradient-accumulation?",
        "--fp16": "Did you mean --dtype float16?",
        "--bf16": "Did you mean --dtype bfloat16?",
        "--device": "The worker trains with all GPUs it has, or on its CPU; --gpus takes fewer.",
        "--limit": "All examples are read; cut the file beforehand.",
        "--output": "The model is kept by its job: `producer models export job:ID DIRECTORY` copies it.",
        "--output-dir": "The model is kept by its job: `producer models export job:ID DIRECTORY` copies it.",
        "--column": "Did you mean --text-column?",
    },
}


class GroupedCommand(click.Command):
    """A command with `groups`: heading -> the names of its options, as they are written first."""

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group, those that are in none at the end."""
        known = {option.opts[0]: option for option in self.get_params(ctx) if isinstance(option, click.Option)}
        for heading, names in self.groups.items():
            self._write(ctx, formatter, heading, [known.pop(name) for name in names])
        self._write(ctx, formatter, "Other", list(known.values()))

    @staticmethod
    def _write(
        ctx: click.Context, formatter: click.HelpFormatter, heading: str, options: Sequence[click.Option]
    ) -> None:
        lines = [line for option in options if (line := option.get_help_record(ctx)) is not None]
        if lines:
            with formatter.section(heading):
                formatter.write_dl(lines)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an option of another tool gets the hint that is true here, in place of one that sounds alike."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = HINTS.get(str(self.name), {}).get(error.option_name.replace("_", "-"))
            if hint is None:
                raise
            raise click.UsageError(f"No such option: {error.option_name}. {hint}", ctx) from error
