"""Entry point of the command `workers`."""

import contextlib
import dataclasses
import logging
import socket
import sys
from collections.abc import Sequence
from typing import Any

import click
import redis

from common.console import ExitOnError
from common.distribution import install_command, missing_libraries, missing_worker_libraries
from common.errors import HugqueueError, UsageError
from common.jobs import DTYPES, ENGINES, QUEUES, TRAIN, VLLM
from common.logs import configure_logging
from common.models.references import parse_preload
from common.models.registry import open_registry, registry_url
from common.queue.heartbeats import live_workers
from common.redis.client import answers_without_tls, connect, explain, is_transient
from common.redis.durability import durability_warnings
from common.redis.schema import check_schema
from common.settings import Settings, load_settings


class _CommandGroup(ExitOnError, click.Group):
    """The group of commands."""


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hugqueue")
def main() -> None:
    """Run hugqueue workers, which load models and process the records of submitted jobs.

    \b
    Redis is configured with CELERY_BROKER_URL or REDIS_URL:
      export REDIS_URL=redis://localhost:6379/0
      workers start --preload fill-mask
    """


@main.command(short_help="Start workers: one per GPU, or one for the CPU.")
@click.option("--device", help="auto, cpu, gpu, or GPUs such as cuda:0,cuda:1.  [default: auto (all GPUs or the CPU)]")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use at most N GPUs that no other worker on this machine uses.  [default: all]",
)
@click.option(
    "--preload",
    multiple=True,
    metavar="TASK[=MODEL]",
    help="Load and warm up a model before accepting work; repeatable.",
)
@click.option(
    "--queues",
    metavar="NAMES",
    help="Comma-separated queues to serve.  [default: any, and the queue of the device]",
)
@click.option("--train", is_flag=True, help="Serve only fine-tune jobs, one at a time, with all GPUs of --device.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Data type for jobs that set none.  [default: auto: float32 on a CPU, bfloat16 on a GPU]",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What generates text, where it can; auto: vLLM on a GPU, if installed.  [default: transformers]",
)
@click.option("--allow-pickle", is_flag=True, help="Also load pickled weights, which can run code.")
@click.option("--allow-remote-code", is_flag=True, help="Allow models to run their own code, as this user.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Serve metrics of these workers for Prometheus at this port.  [default: none]",
)
@click.option(
    "--metrics-address",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve them at.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Minimum level of log messages.",
)
def start(
    gpus: int | None,
    preload: tuple[str, ...],
    queues: str | None,
    log_level: str,
    metrics_port: int | None,
    metrics_address: str,
    **options: str | bool | None,
) -> None:
    """Start one worker per GPU, or one for the CPU, and restart workers that exit, until Ctrl-C or SIGTERM.

    On SIGTERM, running chunks are finished, or released after HUGQUEUE_GRACE seconds (30).

    \b
      workers start --device cpu --preload fill-mask=examples/models/demo-fill-mask
      workers start --device cuda:0,cuda:1 --preload embedding
      workers start --train
    """
    configure_logging(log_level.upper())
    settings = load_settings()
    overrides: dict[str, Any] = {name: value for name, value in options.items() if value}
    settings = dataclasses.replace(
        settings,
        preload=tuple(map(parse_preload, preload or settings.preload)),
        queues=(TRAIN,) if options["train"] else _queues(queues) or settings.queues,
        **overrides,
    )
    metrics_at = (metrics_address, metrics_port) if metrics_port else None
    sys.exit(_supervise(settings, log_level, gpus, metrics_at))


@main.command(short_help="Check whether a worker on this machine is ready.")
def check() -> None:
    """Exit with 0 if a worker on this machine is ready, else with 1; for health checks.

    A worker that is still preloading models, or cannot reach Redis, is not ready.
    """
    settings = load_settings()
    host = socket.gethostname()
    url = _configured(settings)
    client = connect(url)
    try:
        found = [worker for worker in live_workers(client) if worker.host == host]
    except redis.RedisError as error:
        raise HugqueueError(explain(error, url)) from error
    if not any(worker.state == "ready" for worker in found):
        raise HugqueueError(f"No worker is ready on {host}; {len(found)} are starting or stopping.")
    for worker in found:
        click.echo(f"{worker.name}: {worker.state}")


def _configured(settings: Settings) -> str:
    """Return the URL of Redis.

    Raises:
        UsageError: none is configured.
    """
    if settings.broker_url is None:
        raise UsageError(
            "No Redis is configured: set CELERY_BROKER_URL or REDIS_URL. "
            "Without one, `producer submit` starts an embedded Redis and worker."
        )
    return settings.broker_url


def _queues(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    unknown = [name for name in names if name not in QUEUES]
    if unknown:
        raise UsageError(f"--queues: unknown queue {unknown[0]!r}; expected some of {', '.join(QUEUES)}.")
    return names


def _supervise(settings: Settings, log_level: str, gpus: int | None, metrics_at: tuple[str, int] | None) -> int:
    from common.gpus import find_gpus
    from workers.devices import select_devices
    from workers.supervisor import Supervisor

    url = _configured(settings)
    if needs := missing_worker_libraries():
        raise UsageError(f"A worker needs {needs}.")
    if settings.engine == VLLM and missing_libraries([VLLM]):
        raise UsageError(f"--engine vllm needs vLLM: {install_command('worker,vllm')}")
    if settings.train:
        open_registry(registry_url(settings), settings.model_cache)
    devices = select_devices(settings.device, find_gpus())
    if settings.dtype == "int8" and any(devices):
        raise UsageError("--dtype int8 is for CPUs: omit it, or use --device cpu.")
    if settings.dtype == "float8" and not all(devices):
        raise UsageError("--dtype float8 is for GPUs: omit it here.")
    client = connect(url)
    try:
        check_schema(client, url)
        for warning in durability_warnings(client, url):
            logging.warning("%s", warning)
    except redis.RedisError as error:
        if not is_transient(error) or answers_without_tls(error, url):
            raise HugqueueError(explain(error, url)) from error
        logging.warning("%s Waiting for it.", explain(error, url))
    supervisor = Supervisor(settings, devices, client, log_level=log_level, max_workers=gpus)
    with _metrics_of(supervisor.worker_names, client, metrics_at):
        return supervisor.run()


def _metrics_of(
    names: Sequence[str], client: "redis.Redis", metrics_at: tuple[str, int] | None
) -> contextlib.AbstractContextManager[None]:
    """Serve the metrics of these workers as long as the block lasts, if an address and a port are given."""
    if metrics_at is None:
        return contextlib.nullcontext()
    from common.metrics_server import serving_metrics
    from workers.worker_metrics import WorkerMetrics

    logging.info("metrics at http://%s:%d/metrics", *metrics_at)
    return serving_metrics(WorkerMetrics(client, names).read, *metrics_at)


if __name__ == "__main__":
    main()
