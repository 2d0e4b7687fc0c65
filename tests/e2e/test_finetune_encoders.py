"""Embedding models and rerankers from end to end: trained by a command, resumed, reported, and used by later jobs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.support.finetune_runs import model_directory, result_of, steps_kept, training_processes, use_registry
from tests.support.processes import Shell, Workers, wait_until
from tests.support.translations import Translations, encoder_base

StartWorkers = Callable[..., Workers]
MADE = Translations()
PAIRS = [dict(zip(("question", "answer"), row["texts"], strict=True)) for row in MADE.pairs(MADE.known)]
HELD_OUT = [dict(zip(("question", "answer"), row["texts"], strict=True)) for row in MADE.pairs(MADE.unseen)]
RANKED = MADE.ranked(MADE.known)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return encoder_base(tmp_path / "base")


@pytest.fixture
def store(tmp_path: Path, environ: dict[str, str]) -> Path:
    """The model registry, known to workers and commands alike."""
    return use_registry(environ, tmp_path)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_an_embedding_model_outlives_its_worker_and_serves_later_jobs(
    store: Path, shell: Shell, start_workers: StartWorkers, base: Path, tmp_path: Path
) -> None:
    train, held_out = write(tmp_path / "train.jsonl", PAIRS), write(tmp_path / "dev.jsonl", HELD_OUT)
    command = (
        *("finetune", train, "--task", "embedding", "-m", str(base), "--eval", held_out, "--batch-size", "8"),
        *("--epochs", "5", "--learning-rate", "3e-3", "--matryoshka-dims", "32,8"),
    )
    workers = start_workers("--train")
    done = shell.run(*command)
    assert "pairs of texts that belong together" in done.stderr
    job = done.stdout.strip()
    texts = [text for row in HELD_OUT for text in row.values()]
    new = write(tmp_path / "new.jsonl", [{"text": text} for text in texts])
    vectors = shell.submit("--task", "embedding", "-m", f"job:{job}", new)
    assert shell.status(vectors)["status"] == "blocked"
    wait_until(lambda: steps_kept(store, job) > 2, 90, "a checkpoint")
    children = training_processes(workers)
    workers.celery().kill()
    wait_until(lambda: not any(child.is_running() for child in children), 10, "training ends with its worker")
    start_workers()
    shell.run("wait", job, seconds=200)
    result, directory = result_of(shell, job), model_directory(store, job)
    assert any(note.startswith("Resuming from the checkpoint at step") for note in result["notes"])
    assert result["metrics"]["ndcg@10"] > 0.9
    shell.run("wait", vectors)
    found = np.array([row["output"] for row in shell.results(vectors)])
    assert found == pytest.approx(SentenceTransformer(str(directory), device="cpu").encode(texts), abs=1e-5)
    shell.run("report", job, "-o", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "ndcg@10_dim_8" in page and "SentenceTransformer(&quot;DIRECTORY&quot;)" in page


def test_a_reranker_is_trained_by_two_processes_from_a_table(
    store: Path, shell: Shell, start_workers: StartWorkers, base: Path, tmp_path: Path
) -> None:
    start_workers("--train")
    start_workers()
    table = tmp_path / "ranked.csv"
    rows = [
        f"{row['query']},{document},{label:g}"
        for row in RANKED
        for document, label in zip(row["documents"], row["labels"], strict=True)
    ]
    table.write_text("\n".join(["question,passage,fits", *rows]) + "\n", encoding="utf-8")
    columns = ("--text-column", "question,passage", "--label-column", "fits")
    options = ("--task", "rerank", "--batch-size", "8", "--epochs", "1", *columns)
    job = shell.run(
        "finetune", str(table), *options, "-m", str(base), "--eval-split", "0.2", "--gpus", "2", "--lora"
    ).stdout.strip()
    record = {"query": RANKED[0]["query"], "documents": RANKED[0]["documents"]}
    ranking = shell.submit("--task", "rerank", "-m", f"job:{job}", write(tmp_path / "new.jsonl", [record]))
    shell.run("wait", job, seconds=200)
    result = result_of(shell, job)
    assert result["batch"] == [8, 1, 2] and result["labels"]["kind"] == "relevance"
    assert {"ndcg@10", "map", "average_precision", "loss"} <= result["metrics"].keys()
    shell.run("wait", ranking)
    model = CrossEncoder(str(model_directory(store, job)), device="cpu")
    expected = model.predict([(record["query"], document) for document in record["documents"]])
    [row] = shell.results(ranking)
    assert {item["index"]: item["score"] for item in row["output"]} == pytest.approx(
        dict(enumerate(expected)), abs=1e-5
    )
