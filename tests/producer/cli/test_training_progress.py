"""What is shown of a fine-tune job while it runs."""

import io

import pytest
from rich.console import Console

from common.jobs import Job, JobSpec, JobStatus
from common.models.registry import RegisteredModel
from common.records import Json
from producer.cli.progress import JobProgress
from producer.cli.tables import show_models
from workers.training.controller.progress import format_progress

PROGRESS: dict[str, Json] = {
    "stage": "", "step": 12_345, "steps": 54_000, "epoch": 34.0, "epochs": 3000, "loss": 0.69336,
    "learning_rate": 4.99e-6, "examples_per_second": 1092.8, "seconds_left": 7380.4,
    "metrics": {"eval_loss": 0.3146, "eval_accuracy": 0.75}, "notes": [],
}  # fmt: skip


def training(**progress: Json) -> Job:
    spec = JobSpec("0123456789ab", "text-classification", training={})
    return Job(spec, JobStatus.RUNNING, progress=PROGRESS | progress)


def test_80_columns_show_steps_loss_speed_and_time_left_in_one_line() -> None:
    shown = io.StringIO()
    with JobProgress(Console(file=shown, width=80, force_terminal=True, color_system=None)) as progress:
        for step in (12_345, 12_346):
            progress.update(training(step=step))
    *_, last = [line for line in shown.getvalue().replace("\r", "\n").splitlines() if "step" in line]
    assert "step 12,346 of 54,000, loss 0.6934, 1,092.8/s, 2h 03m left" in last
    assert shown.getvalue().count("evaluated: eval_loss 0.3146, accuracy 0.75") == 1


def test_a_model_with_a_metric_that_has_no_value_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    card = {"task": "embedding", "base_model": "org/base", "metrics": {"loss": 0.5, "spearman": None}}
    show_models([RegisteredModel("0123456789ab", "0-1-a", card)])
    assert "job:0123456789ab" in (listed := capsys.readouterr().out) and "loss 0.5" in listed


def test_a_terminal_shows_the_stage_before_there_are_steps() -> None:
    shown = io.StringIO()
    with JobProgress(Console(file=shown, width=80, force_terminal=True, color_system=None)) as progress:
        progress.update(training(stage="starting the training processes", step=40, steps=None))
    assert "starting the training processes" in shown.getvalue()


def test_without_a_terminal_a_line_says_how_far_the_training_is(capfd: pytest.CaptureFixture[str]) -> None:
    progress = JobProgress(None)
    for step in (0, 1, 2, 10, 11, 25, 40):
        progress.update(training(step=step, steps=40, metrics={}))
    told = [line.partition(",")[0] for line in capfd.readouterr().err.splitlines()]
    assert told == ["training", "step 10 of 40", "step 25 of 40"]


def test_what_flower_and_status_show_has_every_number_of_a_step() -> None:
    assert format_progress(PROGRESS) == (
        "step 12,345 of 54,000, loss 0.6934, learning rate 4.99e-06, 1,092.8 examples/s, 123:00 left; "
        "eval_loss 0.3146, accuracy 0.75"
    )
    assert format_progress({"step": 40, "notes": []}) == ""
