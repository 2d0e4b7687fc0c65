"""Whole jobs of rerankers, sparse, late-interaction and static models: every format, and bad records."""

import csv
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.support import tiny_sentence_transformers as tiny
from tests.support.cli_processes import Queue, running_queue
from tests.support.tiny_models import TEXTS

DOCUMENTS = ["the old cat", "a dog in paris", "good news"]


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    folder = tmp_path_factory.mktemp("family")
    with running_queue(folder, HUGQUEUE_MODEL_ROOTS=str(folder)) as running:
        yield running


def test_rankings_and_similarities_reach_every_format(queue: Queue) -> None:
    folder = queue.directory
    model = tiny.reranker(folder / "reranker")
    records = [{"query": "where is the cat?", "documents": DOCUMENTS}, {"query": "a dog", "documents": []}]
    source = queue.write("queries.jsonl", *map(json.dumps, records))
    call = ("submit", "--task", "rerank", "-m", str(model), source)
    queue.run(*call, "-p", "top_k=2", "-o", str(folder / "ranked.parquet"), status=3)
    table = pq.read_table(folder / "ranked.parquet")
    kind = pa.list_(pa.struct({"index": pa.int64(), "score": pa.float64()}))
    assert table.schema.field("output").type == kind
    expected = CrossEncoder(str(model), device="cpu").rank(records[0]["query"], DOCUMENTS, top_k=2)
    assert table["output"].to_pylist() == [
        [{"index": one["corpus_id"], "score": pytest.approx(one["score"], abs=1e-5)} for one in expected],
        None,
    ]
    assert table["error_code"].to_pylist() == [None, "wrong_type"]

    # Pairs from a table, and a list in a cell; with top_k=1, columns of CSV.
    rows = [["query", "documents"], ["where is the cat?", json.dumps(DOCUMENTS)]]
    with (folder / "queries.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    more = ("-p", "top_k=1", "-p", "return_documents=true", "-o", str(folder / "best.csv"))
    queue.run(*call[:-1], str(folder / "queries.csv"), *more)
    [best] = csv.DictReader((folder / "best.csv").open())
    assert best["output_document"] == DOCUMENTS[expected[0]["corpus_id"]]
    assert float(best["output_score"]) == pytest.approx(expected[0]["score"], abs=1e-5)
    pairs = queue.write("pairs.jsonl", *(json.dumps({"query": "a cat", "document": text}) for text in DOCUMENTS))
    queue.run(*call[:-1], pairs, "-o", str(folder / "pairs.jsonl.out.jsonl"))
    scored = [json.loads(line) for line in (folder / "pairs.jsonl.out.jsonl").read_text().splitlines()]
    assert [one["index"] for row in scored for one in row["output"]] == [0, 0, 0]

    refused = queue.run(*call, "-p", "top_n=2", status=2)
    assert "top_k" in refused.stderr
    wrong = queue.run(*call[:3], "-m", str(tiny.static(folder / "static")), source, "--wait", status=1)
    assert "--task embedding" in " ".join(wrong.stderr.split())


def test_vectors_of_all_kinds_reach_every_format(queue: Queue) -> None:
    folder = queue.directory
    source = queue.write("texts.txt", *TEXTS)
    call = ("submit", source, "--chunk-size", "5", "--task")
    sparse = str(tiny.sparse(folder / "sparse"))
    queue.run(*call, "sparse-embedding", "-m", sparse, "-p", "tokens=true", "-o", str(folder / "sparse.parquet"))
    table = pq.read_table(folder / "sparse.parquet")
    parts = [("indices", pa.list_(pa.int32())), ("tokens", pa.list_(pa.string())), ("values", pa.list_(pa.float32()))]
    assert table.schema.field("output").type == pa.struct(parts)
    shown = queue.results("@last")
    assert [row["output"]["indices"] for row in shown] == [one["indices"] for one in table["output"].to_pylist()]

    several = str(tiny.multi_vector(folder / "several"))
    queue.run(*call, "multi-vector-embedding", "-m", several, "-p", "task=query", "-o", f"{folder / 'several.parquet'}")
    kind = pq.read_table(folder / "several.parquet").schema.field("output").type
    assert kind == pa.list_(pa.list_(pa.float32(), 128))
    status = queue.status("@last")
    assert "sentence-transformers" in status["ran_on"]["modules"]

    static = tiny.with_module("StaticEmbedding", folder / "bag")
    more = ("-p", "truncate_dim=8", "-p", "precision=float16", "-o", str(folder / "static.npy"))
    queue.run(*call, "embedding", "-m", str(static), *more)
    expected = SentenceTransformer(str(static), device="cpu").encode(list(TEXTS), truncate_dim=8)
    found = np.load(folder / "static.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=1e-2)
