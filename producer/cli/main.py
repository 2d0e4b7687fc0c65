"""Entry point of the command `producer`. Each command's module is imported when the command is called."""

from importlib import import_module
from typing import Any

import click

from common.console import ExitOnError
from common.suggestions import did_you_mean

#: Command -> its module in `producer.cli.commands` and one line of help, so that `--help` imports none of them.
COMMANDS = {
    "submit": ("submit", "Run records through a model."),
    "finetune": ("finetune", "Fine-tune a model on labeled examples."),
    "jobs": ("jobs", "List jobs, newest first."),
    "status": ("jobs", "Show a job's status, counts and error."),
    "wait": ("wait", "Wait until jobs are finished."),
    "watch": ("wait", "Watch a job's progress until it is finished."),
    "results": ("results", "Print or save a job's results."),
    "logs": ("jobs", "Show the embedded worker's log of a job."),
    "retry": ("results", "Retry failed and unfinished records."),
    "cancel": ("jobs", "Cancel jobs, keeping finished results."),
    "delete": ("jobs", "Delete jobs with their records and results."),
    "models": ("models", "List, export or upload fine-tuned models."),
    "report": ("report", "Write an HTML report on a fine-tune job."),
    "tasks": ("listings", "List tasks and their default models."),
    "workers": ("listings", "List live workers."),
    "metrics": ("metrics", "Serve metrics for Prometheus."),
    "control": ("control", "Serve tasks for Celery apps."),
    "up": ("up", "Start Redis, workers and Flower on this machine."),
    "down": ("up", "Stop the embedded worker and Redis."),
}


def _set_quiet(_context: click.Context, _option: click.Parameter, enabled: bool) -> None:
    if enabled:
        from producer.cli.terminal import set_quiet

        set_quiet()


def _set_verbose(_context: click.Context, _option: click.Parameter, enabled: bool) -> None:
    if enabled:
        from common.console import show_tracebacks
        from common.logs import configure_logging

        show_tracebacks()
        configure_logging()


#: Options of every command.
COMMON_OPTIONS = (
    click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        expose_value=False,
        callback=_set_quiet,
        help="Print only answers and errors.",
    ),
    click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Log each step, and show tracebacks of errors.",
    ),
)


class LazyGroup(ExitOnError, click.Group):
    """A group whose commands are imported when they are called, so that `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"producer.cli.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        for one in (command, *getattr(command, "commands", {}).values()):
            if not any(option in COMMON_OPTIONS for option in one.params):
                one.params.extend(COMMON_OPTIONS)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the command, or suggest similar names."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hugqueue")
def main() -> None:
    """Batch-process text, images and audio with Hugging Face models through a task queue.

    \b
      producer submit --task fill-mask sentences.txt
      producer submit --task embedding articles.jsonl -o vectors.npy
      producer submit --task ner reviews.csv --column review -o names.csv

    If no Redis is configured, an embedded Redis and worker run for as long as they are needed. To use your own
    Redis, set CELERY_BROKER_URL or REDIS_URL, and run `workers start` on every machine that should do the work.
    """
