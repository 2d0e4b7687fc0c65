"""Checks of a job's model before it is submitted: whether it exists, as far as this machine can see.

A path is one on the worker's machine. That of an embedded queue is this machine; other workers may have directories
that do not exist here.
"""

import contextlib
from pathlib import Path

from common.errors import StorageError, UnknownJob, UsageError
from common.jobs import JobStatus
from common.models.references import ModelRef, find_model
from common.models.registry import open_registry, registry_url
from common.settings import Settings
from producer.queue_connection import QueueConnection


def check_model(model: str | None, settings: Settings, option: str = "--model") -> str | None:
    """Return the model as a job names it.

    Raises:
        UsageError: There is no such model, as far as this machine can check.
    """
    if model is None:
        return None
    ref, url = find_model(model, option, local=settings.embedded), registry_url(settings)
    if ref.kind != "job" or url is None:
        return str(ref)
    with contextlib.suppress(StorageError):  # the workers may reach it
        if open_registry(url, settings.model_cache).find(ref.name) is None:
            raise UsageError(
                f"{option} {model}: the model registry {url} has no model of that job. "
                "`producer models` lists those it has."
            )
    return str(ref)


def check_job_model(connection: QueueConnection, model: str | None) -> None:
    """Check that `job:ID` is not a job of this queue without a model, if no model registry can be seen from here.

    Raises:
        UsageError: It is not a fine-tune job, or not completed.
        StoreUnavailable: Redis cannot be reached.
    """
    ref = ModelRef.parse(model) if model else None
    if ref is None or ref.kind != "job" or registry_url(connection.settings) is not None:
        return
    try:
        job = connection.load_job(ref.name)
    except UnknownJob:
        return  # perhaps it was deleted: its model outlives it
    if job.spec.training is None:
        raise UsageError(f"--model {model}: that job ran {job.spec.task} and trained no model.")
    if job.status is not JobStatus.COMPLETED:
        raise UsageError(f"--model {model}: that job is {job.status}, so it has no model (yet).")


def model_warning(model: str | None, settings: Settings) -> str | None:
    """Return a warning about a directory that does not exist on this machine; None without one."""
    if settings.embedded or model is None or not model.startswith("/") or Path(model).is_dir():
        return None
    return f"There is no directory {model} on this machine; the workers must have it there."
