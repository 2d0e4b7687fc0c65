"""Which model store there is, and what `job:ID` names in it."""

from pathlib import Path

from common.errors import UsageError, path_errors
from common.jobs import JOB_ID
from common.models.registry import ModelRegistry
from common.models.remote_registry import RemoteModelRegistry
from common.settings import Settings


def job_of(model: str | None) -> str | None:
    """Return the job that `job:ID` names; None for any other name of a model.

    Raises:
        UsageError: it begins with `job:`, and no job's id follows.
    """
    if model is None or not model.startswith("job:"):
        return None
    job_id = model.removeprefix("job:")
    if not JOB_ID.match(job_id):
        raise UsageError(f"{model!r} names no job: expected job: and twelve hexadecimal digits.")
    return job_id


def registry_url(settings: Settings) -> str | None:
    """Return where the model store is: as set, and in the state directory for the embedded queue."""
    if settings.models_url:
        return settings.models_url
    return str(settings.home.expanduser().absolute() / "models") if settings.embedded else None


def open_registry(url: str | None, cache: Path) -> ModelRegistry:
    """Return the store at `address`; models of a remote one are brought into `cache`.

    Raises:
        UsageError: there is no address, or what it needs is not installed.
    """
    if not url:
        raise UsageError(
            "No model store is configured: set HUGQUEUE_MODELS_URL to a directory that all workers share, or to an "
            "address as s3://bucket/models."
        )
    scheme, separator, path = url.partition("://")
    if not separator or scheme == "file":
        with path_errors(f"The model store {url} cannot be used"):
            root = Path(path if separator else url).expanduser().absolute()
            root.is_dir()  # asked here, so that a path which the system refuses is told with its setting
        return ModelRegistry(root)
    return RemoteModelRegistry(url, cache)
