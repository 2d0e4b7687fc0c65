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
    return None if model is None else str(find_model(model, option, local=settings.embedded))


def check_job_model(connection: QueueConnection, model: str | None, settings: Settings) -> str | None:
    """Check that `job:ID` has a model or is about to train one, as far as this machine can see.

    Args:
        connection: The queue.
        model: As a job names it.
        settings: Of the submit: they say where the model registry is.

    Returns:
        The id of the job that is to end before the model is there; None if there is none.

    Raises:
        UsageError: It is not a fine-tune job, it ended without a model, or the model registry has none of it.
        StoreUnavailable: Redis cannot be reached.
    """
    ref = ModelRef.parse(model) if model else None
    if ref is None or ref.kind != "job":
        return None
    try:
        job = connection.load_job(ref.name)
    except UnknownJob:  # perhaps it was deleted: its model outlives it
        job = None
    if job is not None and job.spec.training is None:
        raise UsageError(f"--model {model}: that job ran {job.spec.task} and trained no model.")
    if job is not None and not job.status.finished:
        return job.id
    if job is not None and job.status is not JobStatus.COMPLETED and registry_url(settings) is None:
        raise UsageError(
            f"--model {model}: that job is {job.status}, so it has no model. After `producer retry {job.id}` this job "
            "can be submitted, and waits for it."
        )
    check_registered(model, settings)
    return None


def check_registered(model: str | None, settings: Settings) -> None:
    """Check that the model registry, if this machine knows it, has the model of `job:ID`.

    Raises:
        UsageError: It has not.
    """
    ref, url = ModelRef.parse(model) if model else None, registry_url(settings)
    if ref is None or ref.kind != "job" or url is None:
        return
    with contextlib.suppress(StorageError):  # the workers may reach it
        if open_registry(url, settings.model_cache).find(ref.name) is None:
            raise UsageError(
                f"--model {ref}: the model registry {url} has no model of that job. "
                "`producer models` lists those it has."
            )


def model_warning(model: str | None, settings: Settings) -> str | None:
    """Return a warning about a directory that does not exist on this machine; None without one."""
    if settings.embedded or model is None or not model.startswith("/") or Path(model).is_dir():
        return None
    return f"There is no directory {model} on this machine; the workers must have it there."
