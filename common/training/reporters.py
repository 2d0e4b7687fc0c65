"""Reporters of fine-tune jobs: programs outside of the queue that training may report its metrics to."""

from collections.abc import Iterable, Mapping, Sequence

#: As transformers calls them.
REPORTERS = ("tensorboard", "trackio", "wandb", "mlflow")
#: Credentials in a worker's environment that only training which reports there is given.
CREDENTIALS: Mapping[str, tuple[str, ...]] = {
    "mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN"),
    "wandb": ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
}


def other_credentials(reporters: Iterable[str]) -> set[str]:
    """Return the variables with credentials of all reporters but these."""
    return {name for reporter in CREDENTIALS.keys() - set(reporters) for name in CREDENTIALS[reporter]}


def not_allowed(wanted: Sequence[str], allowed: Sequence[str]) -> str | None:
    """Return what is wrong with reporting where `HUGQUEUE_REPORT_TO` does not allow it, None if nothing is."""
    refused = [name for name in wanted if name not in allowed]
    if not refused:
        return None
    found = f"allows {', '.join(allowed)}" if allowed else "is not set, so it reports nowhere"
    return f"this worker does not report to {' or '.join(refused)}: HUGQUEUE_REPORT_TO {found}."
