"""Vectors of a real model in every precision, from two workers to the files that users read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import quantize_embeddings

from tests.support.embeddings import embedding_type, minilm_directory
from tests.support.processes import Shell, Workers

StartWorkers = Callable[..., Workers]

RECORDS = 301
OPTIONS = ("--task", "embedding", "-m", str(minilm_directory()), "--chunk-size", "50")


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Texts of which one cannot run; the last chunk, which is done soonest, has a single one."""
    path = tmp_path / "in.jsonl"
    texts = [f"text {n} says {n * n % 97}: " + "word " * (n % 40) for n in range(RECORDS)]
    texts[70] = " "
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    return str(path)


def submit(shell: Shell, source: str, output: Path, *params: str) -> dict[str, Any]:
    """Run a job of vectors; return its status."""
    options = [word for param in params for word in ("-p", param)]
    shell.run("submit", *OPTIONS, source, *options, "-o", str(output), status=3)
    return shell.status("@last")


def test_two_workers_quantize_with_the_same_ranges(
    shell: Shell, start_workers: StartWorkers, source: str, tmp_path: Path
) -> None:
    for _ in range(2):
        start_workers("--preload", f"embedding={minilm_directory()}")
    submit(shell, source, tmp_path / "floats.npy")
    status = submit(shell, source, tmp_path / "int8.npy", "precision=int8")
    floats, found = np.load(tmp_path / "floats.npy"), np.load(tmp_path / "int8.npy")
    rows = np.arange(RECORDS) != 70
    ranges = np.array([status["ranges"]["min"], status["ranges"]["max"]])
    assert status["ranges"]["source"] == "chunks 1 to 3 (149 records)"
    assert status["ran_on"]["vectors"] == "int8, ranges from chunks 1 to 3 (149 records)"
    np.testing.assert_allclose(
        ranges, [floats[:150][rows[:150]].min(axis=0), floats[:150][rows[:150]].max(axis=0)], atol=1e-6
    )
    assert found.dtype == np.int8 and not found[70].any() and np.isnan(floats[70]).all()
    difference = np.abs(quantize_embeddings(floats[rows], "int8", ranges=ranges).astype(int) - found[rows])
    # Where batches differ, vectors differ by about 1e-6, a thousandth of a step.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    shown = shell.run("status", "@last").stdout
    assert "int8, ranges from chunks 1 to 3" in " ".join(shown.split())

    # The same ranges, for the vectors of other texts: from the status of the job.
    (tmp_path / "ranges.json").write_text(json.dumps(status["ranges"]))
    again = submit(shell, source, tmp_path / "again.npy", "precision=int8", f"ranges={tmp_path / 'ranges.json'}")
    assert again["params"]["ranges"] == "ranges.json"
    difference = np.abs(np.load(tmp_path / "again.npy").astype(int) - found)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_every_precision_and_pieces_reach_their_files(
    shell: Shell, start_workers: StartWorkers, source: str, tmp_path: Path
) -> None:
    start_workers("--preload", f"embedding={minilm_directory()}")
    for precision in ("float16", "uint8", "binary"):
        submit(shell, source, tmp_path / f"{precision}.parquet", f"precision={precision}", "truncate_dim=32")
        table = pq.read_table(tmp_path / f"{precision}.parquet")
        kind = embedding_type(32, precision=precision)
        assert table.schema.field("output").type == kind
        assert table["output"].null_count == 1 and table["output"][70].as_py() is None
        shell.run("results", "@last", "-o", str(tmp_path / "again.npy"))
        matrix = np.load(tmp_path / "again.npy")
        assert matrix.dtype == kind.value_type.to_pandas_dtype() and matrix.shape == (RECORDS, kind.list_size)
        np.testing.assert_array_equal(matrix[0], table["output"][0].as_py())
        assert shell.results("@last")[0]["output"] == pytest.approx(table["output"][0].as_py())
    params = ("split_tokens=16", "split_overlap=4", "precision=uint8")
    status = submit(shell, source, tmp_path / "pieces.parquet", *params)
    assert "pieces)" in status["ranges"]["source"]
    table = pq.read_table(tmp_path / "pieces.parquet")
    assert table.schema.field("output").type == embedding_type(384, split_tokens=16, precision="uint8")
    text, pieces = table["text"][39].as_py(), table["output"][39].as_py()
    assert len(pieces) > 3 and pieces[0]["start"] == 0 and pieces[-1]["end"] == len(text.rstrip())
    assert all(isinstance(number, int) for number in pieces[0]["vector"])
    assert pa.types.is_uint8(table.schema.field("output").type.value_type.field("vector").type.value_type)
    refused = shell.run("results", "@last", "-o", str(tmp_path / "pieces.npy"), status=2)
    assert "one vector per record" in refused.stderr

    # A job of one record has no ranges.
    (tmp_path / "one.txt").write_text("one text\n")
    done = shell.run("submit", *OPTIONS, str(tmp_path / "one.txt"), "-p", "precision=int8", "--wait", status=1)
    assert "failed: bad_param: precision=int8 needs the ranges of at least two vectors" in " ".join(done.stderr.split())
