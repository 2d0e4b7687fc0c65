"""How far a fine-tune job is, in words: what is worth a line where there is no bar."""

from collections.abc import Mapping

from common.jobs import Job
from common.records import Json


def format_metrics(progress: Mapping[str, Json]) -> list[str]:
    """Return the newest loss and metrics of a job, a few words each."""
    values = {"loss": progress.get("loss"), **(progress.get("metrics") or {})}
    return [
        f"{name.removeprefix('eval_') if name != 'eval_loss' else name} {value:.4g}"
        for name, value in values.items()
        if isinstance(value, int | float)
    ]


def status_line(job: Job) -> str:
    """Return the line for this state: its stage, or what an evaluation gave; the same text while neither changes."""
    progress = job.progress
    if progress.get("stage") or not progress.get("metrics"):
        return str(progress.get("stage") or ("training" if "step" in progress else ""))
    return format_evaluation(job)


def format_evaluation(job: Job) -> str:
    """Return what the newest evaluation gave; empty if there was none."""
    metrics = job.progress.get("metrics")
    return f"evaluated: {', '.join(format_metrics({'metrics': metrics}))}" if metrics else ""


def step_counts(job: Job) -> tuple[int, int | None]:
    """Return how many steps are done, and of how many."""
    return int(job.progress.get("step") or 0), job.progress.get("steps")
