"""Typed outputs of whole jobs: the same in every format, in parts that failed as a whole, and after a retry."""

import base64
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import transformers

from hugqueue import Client
from tests.support import tiny_media, tiny_models
from tests.support.cli_processes import Queue, running_queue
from tests.support.pipeline_reference import assert_same
from tests.support.processes import lines

TEXTS = ["the old cat", "good news", "", "", "", "서울은 big city"]  # the second of three chunks fails as a whole
LABEL = pa.struct({"label": pa.string(), "score": pa.float64()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("typed")


@pytest.fixture(scope="module")
def queue(folder: Path) -> Iterator[Queue]:
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder), HUGQUEUE_SHARED=str(folder)) as running:
        yield running


@pytest.fixture
def client(queue: Queue, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("HUGQUEUE_SHARED", str(folder))
    with Client(queue.server.url) as opened:
        yield opened


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    return tiny_models.classifier(folder / "classifier")


def submit(queue: Queue, classifier: Path, out: Path, *options: str) -> str:
    """Run a job with an output directory; return its id."""
    source = queue.write("texts.jsonl", *(json.dumps({"text": text}) for text in TEXTS))
    call = ("submit", "--task", "sentiment-analysis", "-m", str(classifier), source, "--chunk-size", "2", *options)
    queue.run(*call, "-o", f"{out}/", status=3)
    return str(json.loads((out / "_manifest.json").read_text())["id"])


def test_labels_are_structs_in_every_format(queue: Queue, folder: Path, classifier: Path, client: Client) -> None:
    out = folder / "parquet"
    job = submit(queue, classifier, out)
    parts = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    assert [part.schema.field("output").type for part in parts] == [LABEL] * 3
    labels = [row for part in parts for row in part["output"].to_pylist()]
    pipe = transformers.pipeline("text-classification", model=str(classifier), device="cpu")
    for text, label in zip(TEXTS, labels, strict=True):
        if text:
            assert_same(label, pipe(text)[0])
    assert [label is None for label in labels] == [not text for text in TEXTS]
    assert parts[1]["error_code"].to_pylist() == ["empty_text"] * 2
    queue.run("results", job, "-o", str(folder / "one.parquet"))
    assert pq.read_table(folder / "one.parquet")["output"].to_pylist() == labels
    queue.run("results", job, "-o", str(folder / "one.csv"))
    with (folder / "one.csv").open(newline="") as file:
        cells = [(row["output_label"], row["output_score"]) for row in csv.DictReader(file)]
    assert cells == [(label["label"], repr(label["score"])) if label else ("", "") for label in labels]
    assert [row.get("output") for row in queue.results(job)] == labels
    handle = client.job(job)
    assert [row.output for row in handle.results()] == labels
    assert handle.to_arrow().schema.field("output").type == LABEL


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_retry_keeps_the_values_of_a_part(queue: Queue, folder: Path, classifier: Path, format: str) -> None:
    out = folder / f"again-{format}"
    job = submit(queue, classifier, out, "--output-format", format)
    before = {path.name: path.read_bytes() for path in out.glob("part-*")}
    queue.run("retry", job, "--wait", status=3)
    assert {path.name: path.read_bytes() for path in out.glob("part-*")} == before


def test_vectors_have_their_length_in_a_part_of_failures_too(queue: Queue, folder: Path) -> None:
    model, out = tiny_models.masked_bert(folder / "bert"), folder / "vectors"
    texts = queue.write("vectors.jsonl", *(json.dumps({"text": text}) for text in ["a cat", "the dog", "", ""]))
    options = ("--task", "embedding", "-m", str(model), texts, "--chunk-size", "2", "-o", f"{out}/")
    queue.run("submit", *options, status=3)
    vector = pa.list_(pa.float32(), 32)
    assert [pq.read_schema(path).field("output").type for path in sorted(out.glob("*.parquet"))] == [vector] * 2
    assert ds.dataset(out).to_table()["output"].null_count == 2


def test_masks_are_bytes_and_in_json_base64(queue: Queue, folder: Path, client: Client) -> None:
    model, out = tiny_media.segformer(folder / "segformer"), folder / "masks"
    tiny_media.photos(folder / "photos")
    options = ("--task", "image-segmentation", "-m", str(model), "photos", "-o", f"{out}/", "--output-format", "jsonl")
    queue.run("submit", *options)
    rows = [row for path in sorted(out.glob("*.jsonl")) for row in lines(path.read_text())]
    job = str(json.loads((out / "_manifest.json").read_text())["id"])
    found = [row.output for row in client.job(job).results()]
    masks = [segment["mask"] for output in found for segment in output]
    assert masks and all(mask.startswith(b"\x89PNG") for mask in masks)
    assert [segment["mask"] for row in rows for segment in row["output"]] == [
        base64.b64encode(mask).decode() for mask in masks
    ]
    queue.run("results", job, "-o", str(folder / "masks.parquet"))
    assert pq.read_table(folder / "masks.parquet")["output"].to_pylist() == found
