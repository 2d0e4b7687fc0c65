"""Reports of a training run to programs outside of the queue: whether the worker allows them, and their environment."""

import os
from collections.abc import Mapping, Sequence

from common.distribution import install_command, missing_libraries
from common.errors import ModelError, WorkerError
from common.training.reporters import not_allowed

#: The project, or experiment, that runs belong to unless the worker's environment names another one.
_PROJECT = "hugqueue"


def check_reporters(wanted: Sequence[str], allowed: Sequence[str], env: Mapping[str, str]) -> None:
    """Check that this worker, in its environment, reports to what a job asks for.

    Raises:
        ModelError: `report_not_allowed`.
        WorkerError: `missing_library`; `report_not_allowed`, a setting of the reporter is missing.
    """
    if refused := not_allowed(wanted, allowed):
        raise ModelError("report_not_allowed", f"--report-to: {refused}")
    for name in missing_libraries(wanted):
        raise WorkerError(
            "missing_library", f"--report-to {name}: {name} is not installed. Install it: {install_command(name)}."
        )
    if "mlflow" in wanted and not env.get("MLFLOW_TRACKING_URI"):
        raise WorkerError(
            "report_not_allowed",
            "--report-to mlflow: MLFLOW_TRACKING_URI is not set in the worker's environment, so there is no place that "
            "outlives the run.",
        )


def reporting_env(env: Mapping[str, str], wanted: Sequence[str], job_id: str) -> dict[str, str]:
    """Return the variables that a run needs besides the worker's own: all of a job's attempts are one run."""
    found: dict[str, str] = {}
    if "tensorboard" in wanted and (directory := env.get("TENSORBOARD_LOGGING_DIR")):
        found["TENSORBOARD_LOGGING_DIR"] = os.path.join(directory, job_id)  # noqa: PTH118 - it may be a URL
    if "wandb" in wanted:
        found |= {"WANDB_RUN_ID": job_id, "WANDB_RESUME": "allow", "WANDB_PROJECT": env.get("WANDB_PROJECT", _PROJECT)}
    if "mlflow" in wanted:
        found["MLFLOW_EXPERIMENT_NAME"] = env.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    return found
