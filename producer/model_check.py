"""What can be known about a job's model before the job is made: whether it is there, as far as this machine can see.

A path is a place on the worker's machine. With an embedded queue that is this machine; a worker of another queue may
have a directory that is not here.
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
        UsageError: no model is there, and this machine can tell.
    """
    if model is None:
        return None
    ref, url = find_model(model, option, local=settings.embedded), registry_url(settings)
    if ref.kind != "job" or url is None:
        return str(ref)
    with contextlib.suppress(StorageError):  # a store that cannot be reached from here tells nothing
        if open_registry(url, settings.model_cache).find(ref.name) is None:
            raise UsageError(
                f"{option} {model}: the model store {url} has no model of that job. "
                "`producer models` lists those it has."
            )
    return str(ref)


def check_job_model(connection: QueueConnection, model: str | None) -> None:
    """Check that `job:ID` is not a job of this queue that has no model (yet), where no model store is seen from here.

    Raises:
        UsageError: it is no fine-tune job, or it is not completed.
        StoreUnavailable: Redis is away.
    """
    ref = ModelRef.parse(model) if model else None
    if ref is None or ref.kind != "job" or registry_url(connection.settings) is not None:
        return
    try:
        job = connection.load_job(ref.name)
    except UnknownJob:
        return  # forgotten since, perhaps: its model outlives it
    if job.spec.training is None:
        raise UsageError(f"--model {model}: that job ran {job.spec.task} and trained no model.")
    if job.status is not JobStatus.COMPLETED:
        raise UsageError(f"--model {model}: that job is {job.status}, so there is no model of it (yet).")


def model_warning(model: str | None, settings: Settings) -> str | None:
    """Return what is to be said of a model that only a worker can see, None if there is nothing to say."""
    if settings.embedded or model is None or not model.startswith("/") or Path(model).is_dir():
        return None
    return f"There is no directory {model} on this machine; the workers must have it there."
