"""Fine-tune jobs in other environments: no queue configured, a model from the Hub, a remote registry, little memory."""

import json
import re
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.events.state import State
from transformers import BertForMaskedLM

from common.broker.app import make_app
from common.settings import Settings
from tests.support.embedded_processes import Home
from tests.support.finetune_runs import TUTORIAL, base_model, progress, result_of, wait_for_step, write_reviews
from tests.support.hub_dataset_server import DatasetServer
from tests.support.processes import RedisServer, Shell, Workers, environment, lines, wait_until
from tests.support.tiny_models import bert_config, wordpiece

StartWorkers = Callable[..., Workers]
#: Processes that read the examples; they make sockets as well.
LOADERS = ("-p", "dataloader_num_workers=1")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_model(tmp_path / "base")


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Shell]:
    home = Home(environment(tmp_path, HUGQUEUE_DEVICE="cpu"))
    yield Shell(home.environ, tmp_path)
    home.end()


@pytest.fixture(autouse=True)
def roots(environ: dict[str, str], tmp_path: Path) -> None:
    environ |= {"HUGQUEUE_MODELS_URL": str(tmp_path / "models"), "HUGQUEUE_MODEL_ROOTS": str(tmp_path)}


def test_with_nothing_configured_it_trains_and_serves_here(embedded: Shell, base: Path, tmp_path: Path) -> None:
    reviews = write_reviews(tmp_path / "reviews.csv")
    deep = tmp_path / ("a" * 60) / ("b" * 60)  # no socket has so long a path
    deep.mkdir(parents=True)
    embedded.environ["TMPDIR"] = str(deep)
    done = embedded.run("finetune", str(reviews), "-m", str(base), "--epochs", "3", "--batch-size", "2", *LOADERS)
    job = done.stdout.strip()
    assert f"Model job:{job}: 6 steps" in done.stderr
    assert "The head (classifier) is newly initialized" in done.stderr
    assert done.stderr.count("newly initialized") == 1
    done = embedded.run("submit", "--task", "text-classification", "-m", f"job:{job}", "-", input="I enjoyed it.")
    assert lines(done.stdout)[0]["output"]["label"] in ("0", "1")
    assert job in embedded.run("models").stdout
    page = tmp_path / "report.html"
    embedded.run("report", job, "-o", str(page))
    assert "<svg" in page.read_text() and "http" not in page.read_text().replace("http://www.w3.org", "")


def test_a_dataset_on_the_hub_is_loaded_by_the_worker(shell: Shell, start_workers: StartWorkers, base: Path) -> None:
    rows = "".join(f"{text},{'good' if label else 'bad'}\n" for text, label in TUTORIAL * 3)
    with DatasetServer({"org/reviews": {"train.csv": f"sentence,mood\n{rows}".encode()}}) as hub:
        start_workers("--train", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        options = ("-m", str(base), "--text-column", "sentence", "--epochs", "1", "--eval-split", "0.5")
        job = shell.run("finetune", "hf:org/reviews", "--label-column", "mood", *options).stdout.strip()
        shell.run("wait", job)
        result = result_of(shell, job)
        assert result["labels"]["names"] == ["bad", "good"]
        assert result["examples"] == {"train": 6, "eval": 6}
        missing = shell.run("finetune", "hf:org/nothing", "-m", str(base)).stdout.strip()
        shell.run("wait", missing, status=1)
        assert shell.status(missing)["error"]["code"] == "dataset_not_found"


def test_a_location_that_a_worker_may_not_write_fails_the_job_at_once(
    shell: Shell, start_workers: StartWorkers, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")  # no user, not even root, makes a directory below it
    start_workers("--train", HUGQUEUE_MODELS_URL="memory://models", HUGQUEUE_HOME=str(tmp_path / "file" / "home"))
    reviews = write_reviews(tmp_path / "reviews.csv")
    job = shell.run("finetune", str(reviews), "-m", str(base)).stdout.strip()
    shell.run("wait", job, status=1, seconds=60)
    error = shell.status(job)["error"]
    assert error["code"] == "worker_fault" and "Not a directory" in error["message"]
    assert "tries" not in error["message"]


def wide_model(directory: Path) -> Path:
    """A tiny BERT with a large vocabulary: its logits fill the memory, not its weights."""
    wordpiece(directory)
    config = bert_config()
    config.vocab_size = 60_000
    BertForMaskedLM(config).save_pretrained(directory)
    return directory


@pytest.mark.faults
def test_where_memory_runs_out_the_batch_is_halved_and_the_steps_stay(
    shell: Shell, start_workers: StartWorkers, tmp_path: Path
) -> None:
    workers = start_workers("--train")
    workers.celery().rlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(f"{'the cat likes the dog ' * 12}\n" * 64)
    job = shell.run(
        "finetune", str(corpus), "--task", "fill-mask", "-m", str(wide_model(tmp_path / "wide")),
        "--batch-size", "64", "--epochs", "1",
    ).stdout.strip()  # fmt: skip
    shell.run("wait", job, seconds=250)
    result = result_of(shell, job)
    halvings = [note for note in result["notes"] if note.startswith("Out of memory: continuing with batches of")]
    assert halvings
    batch, accumulation, _ = result["batch"]
    assert batch * accumulation == 64 and batch == 64 >> len(halvings)
    assert result["steps"] == 1


@pytest.mark.faults
def test_flower_shows_the_training_steps(
    server: RedisServer, shell: Shell, start_workers: StartWorkers, base: Path, tmp_path: Path
) -> None:
    state, ready = State(), threading.Event()
    receivers: list[Any] = []
    app = make_app(Settings(broker_url=server.url))

    def watch() -> None:
        with app.connection_for_read() as connection:
            receivers.append(app.events.Receiver(connection, handlers={"*": state.event}))
            ready.set()
            receivers[0].capture(limit=None, timeout=None, wakeup=True)

    start_workers("--train")
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert ready.wait(10)
    job = shell.run("finetune", str(write_reviews(tmp_path / "r.csv")), "-m", str(base), "--epochs", "3000")
    job_id = job.stdout.strip()
    wait_for_step(shell, job_id, 5)

    def shown() -> Any:
        tasks = [
            task
            for task in state.tasks.values()
            if task.state == "PROGRESS" and re.search("loss.* left", str(task.result))
        ]
        return {task.name: task for task in tasks} if len(tasks) == 2 else None

    try:
        rows = wait_until(shown, 30, "progress of the ticket and of the job")
    finally:
        receivers[0].should_stop = True
        watcher.join()
    assert rows.keys() == {"hugqueue.finetune", "hugqueue.job"}
    line = rows["hugqueue.job"].result
    assert re.match(r"\d+ % · step \d+ of 3,000, loss [\d.]+, [\d:]+ left", line), line
    found = progress(shell, job_id)
    assert found["steps"] == 3000 and found["loss"] > 0 and found["examples_per_second"] > 0
    assert found["seconds_left"] > 0 and found["learning_rate"] is not None
    assert json.loads(shell.run("status", job_id, "--json").stdout)["kind"] == "finetune"
    assert "step" in shell.run("status", job_id).stdout
    shell.run("cancel", job_id)
