"""TensorBoard's files of a run: they go with the model, and an attempt that resumes another continues its files."""

import shutil
from pathlib import Path

#: Where transformers writes them within the directory of an attempt, and the Hub looks for them in a model.
RUNS_DIR = "runs"


def continue_logs(checkpoint: str | None, work_dir: str) -> None:
    """Copy the files of the attempt that wrote the checkpoint to this attempt."""
    if checkpoint is not None:
        _copy(Path(checkpoint).parent, Path(work_dir))


def keep_logs(work_dir: str, model_dir: Path) -> None:
    """Copy the files of a finished attempt into its model."""
    _copy(Path(work_dir), model_dir)


def _copy(source: Path, target: Path) -> None:
    if source != target and (source / RUNS_DIR).is_dir():
        shutil.copytree(source / RUNS_DIR, target / RUNS_DIR, dirs_exist_ok=True)
