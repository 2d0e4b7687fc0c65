"""Reports to other programs: refused unless the worker allows them. TensorBoard's files go with the model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import ModelError, UsageError, WorkerError
from common.settings import load_settings
from producer.finetune.options import FinetuneOptions
from producer.finetune.plan import make_finetune_plan
from tests.support.finetune_runs import TUTORIAL, base_model, make_run_config, train_here, write_reviews
from workers.child_env import child_env
from workers.training.controller.launch import training_env
from workers.training.controller.reporting import check_reporters

REVIEWS = [{"text": text, "label": label} for text, label in TUTORIAL]


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a directory: its scalars by name and step."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(directory.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return found


def test_tensorboard_shows_what_the_job_says_and_its_files_go_with_the_model(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    options: dict[str, Any] = {"epochs": 2, "batch_size": 2, "report_to": ["tensorboard"]}
    first = make_run_config(tmp_path / "1-1-a", "text-classification", base, REVIEWS, REVIEWS, **options)
    result = train_here(first)
    shown = scalars(first.model_dir / "runs")
    assert shown["train/loss"] == pytest.approx({step: loss for step, loss, _ in result["curve"]})
    expected = {entry["step"]: entry["accuracy"] for entry in result["evaluations"]}
    assert shown["eval/accuracy"] == pytest.approx(expected)
    assert "run_name" not in result["arguments"]
    again = make_run_config(tmp_path / "1-2-b", "text-classification", base, REVIEWS, REVIEWS, **options)
    train_here(replace(again, checkpoint=f"{first.work_dir}/checkpoint-2"))
    assert scalars(again.model_dir / "runs")["train/loss"].keys() == shown["train/loss"].keys()


def test_a_job_reports_only_where_the_worker_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reporters((), (), {})
    check_reporters(("tensorboard",), ("wandb", "tensorboard"), {})
    with pytest.raises(ModelError, match="does not report to wandb: HUGQUEUE_REPORT_TO allows tensorboard") as caught:
        check_reporters(("wandb", "tensorboard"), ("tensorboard",), {})
    assert caught.value.code == "report_not_allowed"
    with pytest.raises(ModelError, match="HUGQUEUE_REPORT_TO is not set"):
        check_reporters(("mlflow",), (), {})
    with pytest.raises(WorkerError, match=r"trackio is not installed. Install it: .*trackio") as missing:
        check_reporters(("trackio",), ("trackio",), {})
    assert missing.value.code == "missing_library"
    monkeypatch.setattr("workers.training.controller.reporting.missing_libraries", lambda _: [])
    with pytest.raises(WorkerError, match="MLFLOW_TRACKING_URI is not set"):
        check_reporters(("mlflow",), ("mlflow",), {})
    check_reporters(("mlflow",), ("mlflow",), {"MLFLOW_TRACKING_URI": "http://mlflow"})
    with pytest.raises(UsageError, match="expected one of tensorboard, trackio, wandb, mlflow, found 'comet'"):
        load_settings({"HUGQUEUE_REPORT_TO": "wandb,comet"})
    assert load_settings({"HUGQUEUE_REPORT_TO": "wandb,mlflow"}).report_to == ("wandb", "mlflow")


def test_credentials_reach_only_the_training_that_reports_there(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"WANDB_API_KEY": "a", "MLFLOW_TRACKING_PASSWORD": "b", "MLFLOW_TRACKING_URI": "http://mlflow"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert not child_env("cpu").keys() & {"WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"}
    env = training_env(cuda=False, processes=1, reporters=("wandb",), job_id="0123456789ab")
    assert env["WANDB_API_KEY"] == "a" and "MLFLOW_TRACKING_PASSWORD" not in env
    assert (env["WANDB_RUN_ID"], env["WANDB_RESUME"], env["WANDB_PROJECT"]) == ("0123456789ab", "allow", "hugqueue")
    env = training_env(cuda=False, processes=1, reporters=("mlflow",), job_id="0123456789ab")
    assert (env["MLFLOW_TRACKING_PASSWORD"], env["MLFLOW_EXPERIMENT_NAME"]) == ("b", "hugqueue")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/boards")
    env = training_env(cuda=False, processes=1, reporters=("tensorboard",), job_id="0123456789ab")
    assert env["TENSORBOARD_LOGGING_DIR"] == "/boards/0123456789ab" and "WANDB_RUN_ID" not in env


def test_the_embedded_worker_is_asked_at_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGQUEUE_HOME", str(tmp_path / "home"))
    reviews = [str(write_reviews(tmp_path / "reviews.csv"))]
    options = FinetuneOptions.of(model="org/model", report_to=("tensorboard",))
    with pytest.raises(UsageError, match="--report-to: this worker does not report to tensorboard"):
        make_finetune_plan(reviews, options)
    monkeypatch.setenv("HUGQUEUE_REPORT_TO", "tensorboard")
    assert make_finetune_plan(reviews, options).spec.training["report_to"] == ["tensorboard"]
    with pytest.raises(UsageError, match="--report-to"):
        make_finetune_plan(reviews, FinetuneOptions.of(model="org/model", report_to=("comet",)))
