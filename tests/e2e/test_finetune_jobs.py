"""Fine-tune jobs through a real queue: the tutorial's own case, lost workers, cancelling, several processes."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from common.payloads.codec import decode_records
from hugqueue import Client
from tests.support.finetune_runs import (
    TUTORIAL,
    base_model,
    model_directory,
    progress,
    result_of,
    steps_kept,
    training_processes,
    use_registry,
    wait_for_step,
    write_reviews,
)
from tests.support.hub_repositories import HubRepositories
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_model(tmp_path / "base")


@pytest.fixture
def store(tmp_path: Path, environ: dict[str, str]) -> Path:
    """The model registry, known to workers and commands alike."""
    return use_registry(environ, tmp_path)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_reviews(tmp_path / "reviews.csv")


def finetune(shell: Shell, reviews: Path, base: Path, *options: str) -> str:
    return shell.run("finetune", str(reviews), "-m", str(base), "--batch-size", "2", *options).stdout.strip()


def test_the_tutorials_own_case_runs_and_its_model_serves(
    store: Path, shell: Shell, start_workers: StartWorkers, reviews: Path, tmp_path: Path
) -> None:
    base = base_model(tmp_path / "ready", spread=0.2)  # learns in six steps, as a model does that knows the language
    job = finetune(shell, reviews, base, "--epochs", "3", "--eval", str(reviews), "--learning-rate", "1e-3")
    new = tmp_path / "new.txt"
    new.write_text("\n".join(["I really enjoyed this film.", *(text for text, _ in TUTORIAL)]))
    prediction = shell.submit("--task", "text-classification", "-m", f"job:{job}", str(new))
    again = finetune(shell, reviews, Path(f"job:{job}"), "--epochs", "1")
    for waiting in (prediction, again):
        assert (shell.status(waiting)["status"], shell.status(waiting)["after"]) == ("blocked", [job])
    start_workers("--train")
    shell.run("wait", job)
    result = result_of(shell, job)
    assert (result["steps"], result["epochs"], result["examples"]) == (6, 3.0, {"train": 4, "eval": 4})
    assert {"accuracy", "f1_macro", "loss"} <= result["metrics"].keys()
    assert [entry["epoch"] for entry in result["evaluations"]] == [1.0, 2.0, 3.0]
    model = model_directory(store, job)
    assert {"model.safetensors", "tokenizer.json", "config.json", "metrics.json", "README.md"} <= set(
        path.name for path in model.iterdir()
    )
    assert json.loads((model / "config.json").read_text())["id2label"] == {"0": "0", "1": "1"}
    assert json.loads((model / "metrics.json").read_text()) == result["metrics"]
    assert not (store / job / "work").exists()
    start_workers()
    shell.run("wait", prediction)
    assert [row["output"]["label"] for row in shell.results(prediction)] == ["1", "1", "1", "0", "0"]
    shell.run("wait", again)
    assert result_of(shell, again)["base_model"] == f"job:{job}"
    assert result_of(shell, again)["notes"] == []  # the head is there already
    listed = json.loads(shell.run("models", "--json").stdout)
    assert {entry["model"] for entry in listed} == {f"job:{job}", f"job:{again}"}
    shell.run("models", "export", f"job:{job}", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    with HubRepositories() as hub:
        shell.environ |= hub.environ()
        shell.run("models", "push", f"job:{job}", "maria/reviews")
        pushed = hub.models["maria/reviews"].head.files
    assert pushed["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert pushed.keys() - {".gitattributes"} == {path.name for path in model.iterdir()}
    card = pushed["README.md"].decode()
    assert "pipeline_tag: text-classification" in card and "library_name: transformers" in card
    assert "* labels: 0, 1" in card and "| accuracy |" in card and "* learning_rate: 0.001" in card
    assert "base_model:" not in card  # a directory of this machine


def test_a_killed_worker_loses_no_step_and_changes_no_weight(
    store: Path, shell: Shell, start_workers: StartWorkers, reviews: Path, base: Path
) -> None:
    workers = start_workers("--train")
    # So high a rate that the second epoch is the best: the kill comes after it.
    options = ("--epochs", "20", "--eval", str(reviews), "--learning-rate", "0.3", "--metric-for-best", "loss")
    undisturbed = finetune(shell, reviews, base, *options)
    shell.run("wait", undisturbed, seconds=200)
    expected = result_of(shell, undisturbed)
    job = finetune(shell, reviews, base, *options)
    wait_until(lambda: steps_kept(store, job) > expected["best_step"], 90, "a checkpoint after the best one")
    children = training_processes(workers)
    assert children
    workers.celery().kill()
    wait_until(lambda: not any(child.is_running() for child in children), 10, "training ends with its worker")
    shell.run("wait", job, seconds=200)
    result = result_of(shell, job)
    [since] = [note for note in result["notes"] if note.startswith("Resuming from the checkpoint at step")]
    assert result["best_step"] == expected["best_step"] < int(since.split()[-1].rstrip("."))
    assert result["steps"] == expected["steps"] == 40
    assert [e["loss"] for e in result["evaluations"]] == pytest.approx([e["loss"] for e in expected["evaluations"]])
    assert result["metrics"] == pytest.approx(expected["metrics"])
    weights, right = (load_file(model_directory(store, j) / "model.safetensors") for j in (job, undisturbed))
    assert weights.keys() == right.keys()
    for name, values in weights.items():
        assert values == pytest.approx(right[name], abs=1e-6), name


@pytest.mark.faults
def test_a_stopped_worker_writes_a_checkpoint_and_another_resumes_from_it(
    store: Path, shell: Shell, start_workers: StartWorkers, reviews: Path, base: Path
) -> None:
    first = start_workers("--train", HUGQUEUE_CHECKPOINT="1000")
    job = finetune(shell, reviews, base, "--epochs", "2000", "-p", "save_strategy=no")
    wait_for_step(shell, job, 5)
    assert first.stop() == 0
    checkpoints = list((store / job / "work").glob("*/checkpoint-*/whole.json"))
    assert len(checkpoints) == 1
    assert shell.status(job)["status"] == "running"
    start_workers("--train")
    wait_until(lambda: any("Resuming" in note for note in progress(shell, job).get("notes", ())), 60, "a resumed job")
    shell.run("cancel", job)


def test_cancel_ends_training_soon_and_retry_resumes_the_last_checkpoint(
    store: Path, shell: Shell, start_workers: StartWorkers, reviews: Path, base: Path
) -> None:
    workers = start_workers("--train")
    job = finetune(shell, reviews, base, "--epochs", "5000")
    wait_for_step(shell, job, 5)
    wait_until(lambda: list((store / job / "work").glob("*/checkpoint-*/whole.json")), 30, "a whole checkpoint")
    shell.run("cancel", job)
    wait_until(lambda: shell.status(job)["status"] == "cancelled", 10, "cancelled")
    wait_until(lambda: not training_processes(workers), 5, "no training process")
    assert list((store / job / "work").glob("*/checkpoint-*/whole.json"))
    assert "was cancelled" in shell.run("watch", job, status=1).stderr
    last = max(int(path.name.partition("-")[2]) for path in (store / job / "work").glob("*/checkpoint-*"))
    shell.run("retry", job)
    wait_for_step(shell, job, last + 1)
    assert any("Resuming from the checkpoint at step" in note for note in progress(shell, job)["notes"])
    shell.run("cancel", job)


@pytest.mark.faults
def test_a_training_process_that_dies_is_started_again_from_its_checkpoint(
    store: Path, shell: Shell, start_workers: StartWorkers, reviews: Path, base: Path
) -> None:
    workers = start_workers("--train")
    job = finetune(shell, reviews, base, "--epochs", "200")
    wait_until(lambda: list((store / job / "work").glob("*/checkpoint-*/whole.json")), 60, "a whole checkpoint")
    for child in training_processes(workers):
        child.send_signal(signal.SIGKILL)
    shell.run("wait", job, seconds=200)
    result = result_of(shell, job)
    assert result["steps"] == 400
    assert any("Resuming from the checkpoint" in note for note in result["notes"])


def test_two_processes_share_the_examples_which_may_lie_in_files(
    store: Path, shell: Shell, start_workers: StartWorkers, tmp_path: Path, base: Path
) -> None:
    shell.environ["HUGQUEUE_STORE_URL"] = str(tmp_path / "payloads")
    start_workers("--train", HUGQUEUE_STORE_URL=str(tmp_path / "payloads"))
    noise = random.Random(1)  # so that they are too large for Redis, compressed
    rows = [(f"{text} {noise.randbytes(2000).hex()}", label) for text, label in TUTORIAL * 2]
    reviews = write_reviews(tmp_path / "more.csv", rows)
    job = finetune(shell, reviews, base, "--epochs", "2", "--gpus", "2", "--eval", str(reviews))
    names = {path.name.partition(".")[0] for path in (tmp_path / "payloads" / job / "in").iterdir()}
    assert {"eval-0", "train-0"} <= names
    shell.run("wait", job)
    result = result_of(shell, job)
    assert (result["steps"], result["batch"]) == (4, [2, 1, 2])
    assert sum(map(sum, result["confusion"])) == 8


def test_a_program_trains_on_a_table_whose_columns_make_the_texts(
    store: Path, shell: Shell, server: RedisServer, start_workers: StartWorkers, base: Path
) -> None:
    start_workers("--train")
    table = {"subject": [text for text, _ in TUTORIAL], "stars": [label for _, label in TUTORIAL]}
    with Client(server.url) as client:
        examples = {"records": table, "template": "review: {subject}", "label_column": "stars"}
        job = client.finetune(**examples, evaluation=table, model=str(base), epochs=1, name="mine")
        payload = client.connection.store.payloads(job.state.spec).examples("train", 0)
        assert payload and decode_records(payload)[0].input == {"text": f"review: {TUTORIAL[0][0]}", "label": 1}
        assert job.wait(120).counts.succeeded == 1
        with pytest.raises(TypeError, match="learning_rat"):
            client.finetune(records=table, model=str(base), learning_rat=1)
    assert result_of(shell, job.id)["examples"] == {"train": 4, "eval": 4}


@pytest.mark.faults
def test_a_nan_loss_fails_the_job_with_a_clear_message(
    store: Path, shell: Shell, start_workers: StartWorkers, reviews: Path, base: Path
) -> None:
    start_workers("--train")
    job = finetune(shell, reviews, base, "--learning-rate", "1e9", "--warmup", "0", "--epochs", "10")
    shell.run("wait", job, status=1)
    error = shell.status(job)["error"]
    assert error["code"] == "loss_nan"
    assert "--learning-rate" in error["message"]


def test_without_a_worker_for_training_the_job_waits_and_a_warning_says_so(
    store: Path, shell: Shell, server: RedisServer, reviews: Path, base: Path
) -> None:
    done = shell.run("finetune", str(reviews), "-m", str(base))
    assert "no live worker serves the queue 'train'" in done.stderr
    assert "workers start --train" in done.stderr
    assert shell.status(done.stdout.strip())["status"] == "queued"


def test_a_worker_for_training_needs_a_store(environ: dict[str, str], start_workers: StartWorkers) -> None:
    workers = start_workers("--train", ready=False)
    assert workers.process and workers.process.wait(60) == 2
    assert "HUGQUEUE_MODELS_URL" in workers.text()
