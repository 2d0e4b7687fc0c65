"""The disk of the model registry is full while a checkpoint is written: a clear error, nothing half, then on again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.models.checkpoints import is_complete, step_of
from common.redis.keys import JobKeys
from tests.support.fault_jobs import LONG
from tests.support.finetune_runs import base_model, model_directory, result_of, write_reviews
from tests.support.full_disks import fill, small_disk
from tests.support.processes import RedisServer, Shell, Workers, wait_until
from workers.celery_worker.process_chunk import MAX_TRIES
from workers.disk_space import is_disk_full

StartWorkers = Callable[..., Workers]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk for some checkpoints of a tiny model."""
    with small_disk(tmp_path / "disk", "8m") as folder:
        yield folder


@pytest.fixture
def store(disk: Path, environ: dict[str, str], tmp_path: Path) -> Path:
    """The model registry, known to workers and commands alike."""
    environ |= {"HUGQUEUE_MODELS_URL": str(disk), "HUGQUEUE_MODEL_ROOTS": str(tmp_path), "HUGQUEUE_CHECKPOINT": "0.1"}
    return disk


def checkpoints(store: Path, job: str) -> list[Path]:
    """All checkpoints of a job, the earliest first, be they whole or not."""
    return sorted((store / job / "work").glob("*/checkpoint-*"), key=step_of)


def whole_checkpoints(store: Path, job: str) -> list[Path]:
    return [checkpoint for checkpoint in checkpoints(store, job) if is_complete(checkpoint)]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_fine_tune_job_on_a_full_disk_resumes_when_space_is_free(
    store: Path, shell: Shell, server: RedisServer, start_workers: StartWorkers, tmp_path: Path
) -> None:
    workers = start_workers("--train")
    base, reviews = base_model(tmp_path / "base"), write_reviews(tmp_path / "reviews.csv")
    options = ("-m", str(base), "--batch-size", "2", "--epochs", "400")
    job = shell.run("finetune", str(reviews), *options).stdout.strip()
    wait_until(lambda: whole_checkpoints(store, job), LONG, "a whole checkpoint")
    filler = fill(store)
    wait_until(lambda: "to be retried: No disk space for " in workers.text(), LONG, "the worker says so")
    assert checkpoints(store, job) == whole_checkpoints(store, job) != [], "no half one takes room"
    server.client.hset(JobKeys.of(job).attempts, "0:retries", MAX_TRIES - 1)
    shell.run("wait", job, status=1, seconds=LONG)
    error = shell.status(job)["error"]
    assert error["code"] == "disk_full" and str(store) in error["message"]
    left = whole_checkpoints(store, job)
    assert left and checkpoints(store, job) == left
    filler.unlink()
    shell.run("retry", job)
    shell.run("wait", job, seconds=LONG)
    result = result_of(shell, job)
    assert result["steps"] == 800
    assert f"Resuming from the checkpoint at step {step_of(left[-1]):,}." in result["notes"]
    assert json.loads((model_directory(store, job) / "model.json").read_text())


def test_full_disk_errors_of_the_libraries_are_recognized(disk: Path) -> None:
    values = {"values": torch.zeros(100_000)}
    fill(disk)
    for write in (
        lambda: torch.save(values, disk / "state.pt"),
        lambda: save_file(values, disk / "model.safetensors"),
        lambda: (disk / "config.json").write_text("text"),
    ):
        with pytest.raises(Exception) as caught:
            write()
        assert is_disk_full(caught.value, disk), caught.value


def test_another_error_is_not_reported_as_a_full_disk(disk: Path) -> None:
    assert not is_disk_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), disk)
    fill(disk)
    assert not is_disk_full(ValueError("a value that no disk has to do with"), disk)
