"""The command `workers`: parses, calls, prints, and no more."""

import dataclasses
import logging
import sys
from typing import Any

import click
import redis

from common.console import exit_on_error, prepare_streams
from common.distribution import missing_worker_libraries
from common.errors import HugqueueError, UsageError
from common.jobs import DTYPES, QUEUES, TRAIN
from common.logs import configure_logging
from common.models.references import parse_preload
from common.models.registry_location import open_registry, registry_url
from common.redis.client import answers_without_tls, connect, explain, is_transient
from common.redis.durability import durability_warnings
from common.redis.schema import check_schema
from common.settings import Settings, load_settings

CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Program(click.Group):
    """A group of commands that shows no traceback for what its user can mend."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        prepare_streams()
        with exit_on_error():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named; click would make exit status 1 of Ctrl-C."""
        with exit_on_error():
            return super().invoke(ctx)


@click.group(cls=_Program, context_settings=CONTEXT)
@click.version_option(package_name="hugqueue")
def main() -> None:
    """Workers of hugqueue: they take turns at jobs, load the models, and write the outcomes back.

    \b
    Redis is where CELERY_BROKER_URL (else REDIS_URL) says:
      export REDIS_URL=redis://localhost:6379/0
      workers start --preload fill-mask
    """


@main.command()
@click.option("--device", help="auto, cpu, gpu, or GPUs as cuda:0,cuda:1.  [default: auto, all GPUs or else the CPU]")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use at most N GPUs that no other worker of this machine has taken.  [default: all]",
)
@click.option(
    "--preload",
    multiple=True,
    metavar="TASK[=MODEL]",
    help="Load and warm a model before any work is taken; repeatable.",
)
@click.option(
    "--queues", metavar="NAMES", help="Queues to serve, split by commas.  [default: any and that of the device]"
)
@click.option("--train", is_flag=True, help="Serve fine-tune jobs alone, one at a time, with all GPUs of --device.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="What models compute in where the job names no dtype.  [default: auto, float32 on a CPU, bfloat16 on a GPU]",
)
@click.option("--allow-pickle", is_flag=True, help="Load weights from pickles too. They can run code: know the model.")
@click.option("--allow-remote-code", is_flag=True, help="Let models bring code of their own. It runs as this user.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def start(
    device: str | None,
    gpus: int | None,
    preload: tuple[str, ...],
    queues: str | None,
    dtype: str | None,
    log_level: str,
    **flags: bool,
) -> None:
    """Start one worker for each GPU, or one for the CPU, and keep them alive until Ctrl-C or SIGTERM.

    On SIGTERM the chunks in hand are finished, or given back after HUGQUEUE_GRACE seconds (30).

    \b
      workers start --device cpu --preload fill-mask=examples/models/demo-fill-mask
      workers start --device cuda:0,cuda:1 --preload embedding
      workers start --train
    """
    configure_logging(log_level.upper())
    settings = load_settings()
    settings = dataclasses.replace(
        settings,
        device=device or settings.device,
        preload=tuple(map(parse_preload, preload or settings.preload)),
        queues=(TRAIN,) if flags["train"] else _queues(queues) or settings.queues,
        dtype=dtype or settings.dtype,
        train=flags["train"] or settings.train,
        allow_pickle=flags["allow_pickle"] or settings.allow_pickle,
        allow_remote_code=flags["allow_remote_code"] or settings.allow_remote_code,
    )
    sys.exit(_supervise(settings, log_level, gpus))


def _queues(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    unknown = [name for name in names if name not in QUEUES]
    if unknown:
        raise UsageError(f"--queues: there is no queue {unknown[0]!r}; expected some of {', '.join(QUEUES)}.")
    return names


def _supervise(settings: Settings, log_level: str, gpus: int | None) -> int:
    from common.gpus import find_gpus
    from workers.devices import select_devices
    from workers.supervisor import Supervisor

    if settings.broker_url is None:
        raise UsageError(
            "No Redis is configured: set CELERY_BROKER_URL or REDIS_URL. "
            "Without one, `producer submit` starts a Redis and a worker of its own."
        )
    if needs := missing_worker_libraries():
        raise UsageError(f"A worker needs {needs}.")
    if settings.train:
        open_registry(registry_url(settings), settings.model_cache)
    devices = select_devices(settings.device, find_gpus())
    if settings.dtype == "int8" and any(devices):
        raise UsageError("--dtype int8 is for CPUs: leave it out, or say --device cpu.")
    client = connect(settings.broker_url)
    try:
        check_schema(client, settings.broker_url)
        for weakness in durability_warnings(client, settings.broker_url):
            logging.warning("%s", weakness)
    except redis.RedisError as error:
        if not is_transient(error) or answers_without_tls(error, settings.broker_url):
            raise HugqueueError(explain(error, settings.broker_url)) from error
        logging.warning("%s Waiting for it.", explain(error, settings.broker_url))
    return Supervisor(settings, devices, client, log_level=log_level, most=gpus).run()


if __name__ == "__main__":
    main()
