"""The command `producer`. Each command lives in its own module and is imported when it is called."""

from importlib import import_module
from typing import Any

import click

from common.console import exit_on_error, prepare_streams

#: Command -> the module of `producer.cli.commands` and one line of help, so that `--help` imports none of them.
COMMANDS = {
    "submit": ("submit", "Send a file through a model."),
    "finetune": ("finetune", "Fine-tune a model on examples."),
    "jobs": ("jobs", "List jobs, the newest first."),
    "status": ("jobs", "Show where a job stands."),
    "wait": ("wait", "Wait until jobs are finished."),
    "watch": ("wait", "Watch a job's progress until it is finished."),
    "results": ("results", "Print or save a job's results."),
    "logs": ("jobs", "Show what the embedded worker logged about a job."),
    "retry": ("results", "Run again what failed or never ended."),
    "cancel": ("jobs", "Stop jobs and keep what is done."),
    "delete": ("jobs", "Forget finished jobs and all that belongs to them."),
    "models": ("models", "List the fine-tuned models, or bring one out."),
    "report": ("report", "Write a page about a fine-tune job."),
    "tasks": ("listings", "List the tasks and their default models."),
    "workers": ("listings", "List the live workers."),
    "up": ("up", "Start Redis, workers and Flower here."),
    "down": ("up", "Stop the embedded worker that is kept for the next command."),
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
        help="Say nothing but the answer, and what went wrong.",
    ),
    click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Log what is done, and show the traceback of an error.",
    ),
)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called: `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"producer.cli.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        for one in (command, *getattr(command, "commands", {}).values()):
            if not any(option in COMMON_OPTIONS for option in one.params):
                one.params.extend(COMMON_OPTIONS)
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; whatever its user can mend ends in a sentence."""
        prepare_streams()
        with exit_on_error():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named; click would make exit status 1 of a broken pipe and of Ctrl-C."""
        with exit_on_error():
            return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the command, or say which names are near."""
        import difflib

        near = difflib.get_close_matches(args[0], COMMANDS, n=2)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hugqueue")
def main() -> None:
    """Send files of text, images and sound through Hugging Face models, by a queue.

    \b
      producer submit --task fill-mask sentences.txt
      producer submit --task embedding articles.jsonl -o vectors.npy
      producer submit --task ner reviews.csv --column review -o names.csv

    With nothing configured, a Redis and a worker are started for as long as they are needed. To use a queue of
    your own, set CELERY_BROKER_URL or REDIS_URL, and run `workers start` wherever the work should be done.
    """


if __name__ == "__main__":
    main(prog_name="producer")
