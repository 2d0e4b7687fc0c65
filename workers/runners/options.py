"""What every runner that loads a model asks of the job's options first."""

from pathlib import Path

from common.errors import ModelError


def model_directory(task: str, model: Path | None) -> Path:
    """Return `model`.

    Raises:
        ModelError: `model_not_found`, the job names none.
    """
    if model is None:
        raise ModelError("model_not_found", f"{task} needs a model: name one with --model.")
    return model
