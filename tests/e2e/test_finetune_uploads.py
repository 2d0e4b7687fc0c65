"""Fine-tune jobs whose models lie on an S3 server: another machine goes on, and a server that is away ends nothing."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from common.errors import Cancelled, StorageError
from common.models.checkpoints import mark_complete
from common.models.registry import ModelRegistry, open_registry
from common.reporting import CancelToken
from tests.support.finetune_runs import base_model, progress, result_of, wait_for_step, write_reviews
from tests.support.processes import Shell, Workers, lines, wait_until
from tests.support.s3_server import S3Server
from workers.training.controller.uploads import Uploads, run_in_thread

JOB, ATTEMPT = "0123456789ab", "0-1-aaaaaaaa"
StartWorkers = Callable[..., Workers]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # fsspec keeps one for each address, whatever server is behind it
        yield server


@pytest.fixture
def store(s3: S3Server, tmp_path: Path) -> ModelRegistry:
    return open_registry(s3.url, tmp_path / "cache")


@pytest.fixture
def finetune(s3: S3Server, environ: dict[str, str], shell: Shell, tmp_path: Path) -> Callable[..., str]:
    """Submits a job whose model goes to the S3 server."""
    more = {"HUGQUEUE_MODELS_URL": s3.url, "HUGQUEUE_MODEL_ROOTS": str(tmp_path), "HUGQUEUE_CHECKPOINT": "0.1"}
    environ |= s3.environ | more
    shell.environ |= s3.environ | more
    base, reviews = base_model(tmp_path / "base"), write_reviews(tmp_path / "reviews.csv")
    options = ("-m", str(base), "--batch-size", "2")
    return lambda *more: shell.run("finetune", str(reviews), *options, *more).stdout.strip()


def checkpoint(store: ModelRegistry, step: int, best: int | None = None) -> Path:
    directory = store.attempt_dir(JOB, ATTEMPT) / f"checkpoint-{step}"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    mark_complete(directory)
    return directory


def stored(s3: S3Server, job: str) -> set[str]:
    return {path.split("/")[-2] for path in s3.find(f"{job}/work/*/*/whole.json")}


def test_a_failed_upload_is_tried_again_with_the_next_checkpoint(store: ModelRegistry, s3: S3Server) -> None:
    uploads = Uploads(store, JOB, ATTEMPT, [].append)
    s3.stop()
    for step in (10, 20, 30):
        uploads.add(checkpoint(store, step, 20 if step > 10 else None))
    assert uploads.wait_until_idle(30)
    s3.start()
    uploads.add(checkpoint(store, 40, 20))
    assert uploads.wait_until_idle(30)
    assert stored(s3, JOB) == {"checkpoint-20", "checkpoint-40"}
    assert not list(store.attempt_dir(JOB, ATTEMPT).glob(".uploads/*"))


def test_what_is_left_at_the_end_has_one_more_try(store: ModelRegistry, s3: S3Server) -> None:
    kept: list[int] = []
    uploads = Uploads(store, JOB, ATTEMPT, kept.append)
    s3.stop()
    uploads.add(checkpoint(store, 10))
    assert uploads.wait_until_idle(30)
    assert kept == [], "nothing has outlived this worker yet"
    s3.start()
    uploads.flush(30)
    assert kept == [10]
    assert stored(s3, JOB) == {"checkpoint-10"}


def test_a_checkpoint_deleted_during_its_upload_is_still_uploaded(store: ModelRegistry, s3: S3Server) -> None:
    uploads = Uploads(store, JOB, ATTEMPT, [].append)
    s3.process.send_signal(signal.SIGSTOP)
    written = checkpoint(store, 10)
    uploads.add(written)
    for path in written.iterdir():
        path.unlink()
    written.rmdir()
    uploads.add(written.with_name("checkpoint-20"))  # gone before its turn came: passed over
    s3.process.send_signal(signal.SIGCONT)
    assert uploads.wait_until_idle(30)
    assert stored(s3, JOB) == {"checkpoint-10"}


def test_local_checkpoints_of_a_job_finished_elsewhere_are_removed(
    store: ModelRegistry, s3: S3Server, tmp_path: Path
) -> None:
    left = checkpoint(store, 10)
    store.evict_stale("0123456789ac")
    assert left.is_dir(), "the job is not over"
    elsewhere = open_registry(s3.url, tmp_path / "elsewhere")
    model = elsewhere.attempt_dir(JOB, "0-2-bbbbbbbb") / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    elsewhere.add_model(JOB, "0-2-bbbbbbbb", model)
    store.evict_stale(JOB)
    assert left.is_dir(), "it belongs to the running job"
    store.evict_stale("0123456789ac")
    assert not left.exists()


def test_local_checkpoints_unused_for_a_week_are_removed(store: ModelRegistry) -> None:
    left = checkpoint(store, 10)
    eight_days_ago = time.time() - 8 * 86_400
    for path in (left, left.parent, left.parent.parent):
        os.utime(path, (eight_days_ago, eight_days_ago))
    store.evict_stale("0123456789ac")
    assert left.is_dir(), "a file in it is new"
    for path in left.iterdir():
        os.utime(path, (eight_days_ago, eight_days_ago))
    store.evict_stale("0123456789ac")
    assert not left.exists()


def test_an_unavailable_store_is_a_transient_error(store: ModelRegistry, s3: S3Server) -> None:
    assert store.find(JOB) is None
    s3.stop()
    with pytest.raises(StorageError):
        store.find(JOB)


def test_cancelling_does_not_wait_for_a_store_that_hangs(store: ModelRegistry, s3: S3Server) -> None:
    s3.process.send_signal(signal.SIGSTOP)
    cancel_token = CancelToken()
    threading.Timer(0.3, cancel_token.cancel).start()
    with pytest.raises(Cancelled):
        run_in_thread(lambda: store.checkpoint_dirs(JOB), cancel_token)


@pytest.mark.faults
def test_another_machine_resumes_and_a_third_serves_the_model(
    finetune: Callable[..., str], s3: S3Server, shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    one = start_workers("--train", HUGQUEUE_HOME=str(tmp_path / "one"))
    job = finetune("--epochs", "100")
    wait_until(lambda: stored(s3, job), 60, "an uploaded checkpoint")
    one.kill()
    start_workers("--train", HUGQUEUE_HOME=str(tmp_path / "two"))
    shell.run("wait", job, seconds=200)
    result = result_of(shell, job)
    assert result["steps"] == 200
    assert any("Resuming from the checkpoint" in note for note in result["notes"])
    wait_until(lambda: not stored(s3, job), 10, "the work is cleared away")
    start_workers(HUGQUEUE_HOME=str(tmp_path / "three"))
    done = shell.run("submit", "--task", "text-classification", "-m", f"job:{job}", "-", "--wait", input="good film")
    assert "output" in lines(done.stdout)[0]


@pytest.mark.faults
def test_an_unavailable_store_costs_no_training_step(
    finetune: Callable[..., str], s3: S3Server, shell: Shell, start_workers: StartWorkers
) -> None:
    workers = start_workers("--train")
    job = finetune("--epochs", "100")
    wait_until(lambda: stored(s3, job), 60, "an uploaded checkpoint")
    s3.stop()
    wait_until(lambda: "is not stored yet" in workers.text(), 30, "an upload that failed")
    wait_until(lambda: progress(shell, job).get("stage") == "storing the model", 60, "the end of training")
    s3.start()
    shell.run("wait", job)
    result = result_of(shell, job)
    assert (result["steps"], result["notes"][1:]) == (200, [])
    wait_until(lambda: s3.find(f"{job}/model.json"), 10, "the model counts")


@pytest.mark.faults
def test_a_cancel_does_not_wait_for_an_upload(
    finetune: Callable[..., str], s3: S3Server, shell: Shell, start_workers: StartWorkers
) -> None:
    start_workers("--train")
    job = finetune("--epochs", "5000")
    wait_until(lambda: stored(s3, job), 60, "an uploaded checkpoint")
    s3.process.send_signal(signal.SIGSTOP)
    wait_for_step(shell, job, progress(shell, job)["step"] + 50)  # training goes on meanwhile
    shell.run("cancel", job)
    wait_until(lambda: shell.status(job)["status"] == "cancelled", 10, "cancelled")
    s3.process.send_signal(signal.SIGCONT)
    assert stored(s3, job)
