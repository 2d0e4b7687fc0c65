"""Datasets of the Hub as inputs, from a server that stands in for it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.inputs.hub_datasets import dataset_files
from common.inputs.sources import expand
from common.redis import keys
from common.redis.keys import JobKeys
from common.storage.storage import open_storage
from tests.support.hub_dataset_server import DatasetServer
from tests.support.processes import ROOT, RedisServer, Shell, Workers, lines

READ = """
import json, sys
from common.errors import UsageError
from common.inputs import find_inputs
from common.tasks import TASKS
try:
    inputs = find_inputs(sys.argv[1:], TASKS["fill-mask"], column="text")
    inputs.check(1000)
    print(json.dumps([record.input for record in inputs.records(1000)]))
except UsageError as error:
    print(json.dumps(str(error)))
"""


def table(*texts: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return bytes(sink.getvalue())


CARD = b"""---
configs:
- config_name: short
  default: true
  data_files: [{split: train, path: a.csv}, {split: dev, path: "parts/*.csv"}]
- config_name: long
  data_files: parts/2.csv
---
"""
DATA_SETS = {
    "org/carded": {
        "README.md": CARD,
        "a.csv": b"text\na\n",
        "parts/1.csv": b"text\nb\n",
        "parts/2.csv": b"text\nc\n",
        "test.csv": b"text\nd\n",
    },
    "org/damaged": {"README.md": b"---\nconfigs: [{}]\n---\n", "a.csv": b"text\na\n"},
    "org/split": {
        "README.md": b"",
        "data/train-00000-of-00002.parquet": table("a", "b"),
        "data/train-00001-of-00002.parquet": table("c"),
        "data/test-00000-of-00001.parquet": table("t"),
    },
    "org/whole": {"reviews.jsonl": b'{"text": "one"}\n{"text": "two"}\n'},
    "org/only": {"test.csv": b"text\nt\n"},
    "org/several": {"cola/train.csv": b"text\nx\n", "sst2/train.csv": b"text\ny\n"},
}


@pytest.fixture(scope="module")
def hub() -> Iterator[DatasetServer]:
    with DatasetServer(DATA_SETS) as server:
        yield server


def read(hub: DatasetServer, *inputs: str) -> object:
    """Return what a fresh process reads: the Hub's library takes its address when it is imported."""
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", READ, *inputs], env=environ, capture_output=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_a_dataset_gives_the_records_of_its_split(hub: DatasetServer) -> None:
    assert read(hub, "hf:org/split") == ["a", "b", "c"]
    assert read(hub, "hf:org/split:test") == ["t"]


def test_a_dataset_is_submitted_and_read_in_place(
    hub: DatasetServer, shell: Shell, start_workers: Callable[..., Workers], server: RedisServer
) -> None:
    environ = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HUGQUEUE_SHARED": "hf://datasets/org"}
    shell.environ |= environ
    told = shell.run(
        "submit", "--task", "test-echo", "hf:org/split:train", "--column", "text", "--dry-run", status=1
    ).stdout
    assert "records  3" in told
    start_workers(**environ)
    done = shell.run("submit", "--task", "test-echo", "hf:org/split:train", "--column", "text", "--wait")
    assert [(row["id"].rpartition("/")[2], row["output"]) for row in lines(done.stdout)] == [
        ("train-00000-of-00002.parquet:0", "A"),
        ("train-00000-of-00002.parquet:1", "B"),
        ("train-00001-of-00002.parquet:0", "C"),
    ]
    [job] = server.client.zrange(keys.JOBS, 0, -1)
    payloads = server.client.hvals(JobKeys.of(job.decode()).input)
    assert len(payloads) == 2
    assert all(b"hf://datasets/org/split/data/train" in payload for payload in payloads)
    asked = shell.run("submit", "--task", "test-echo", "hf:org/split:train", "--template", "of {text}", "--wait")
    assert [row["output"] for row in lines(asked.stdout)] == ["OF A", "OF B", "OF C"]


def test_a_dataset_without_splits_is_all_train(hub: DatasetServer) -> None:
    assert read(hub, "hf:org/whole:train") == ["one", "two"]


def test_the_only_split_need_not_be_named(hub: DatasetServer) -> None:
    assert read(hub, "hf:org/only") == ["t"]


def test_a_file_of_a_dataset_can_be_named(hub: DatasetServer) -> None:
    assert read(hub, "hf://datasets/org/several/sst2/train.csv") == ["y"]
    assert read(hub, "hf://datasets/org/split/data/train-*.parquet") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "texts"),
    [("", ["a"]), (":dev", ["b", "c"]), (":short", ["a"]), (":long", ["c"]), (":short:dev", ["b", "c"])],
)
def test_a_card_says_what_its_configurations_are(name: str, texts: list[str], hub: DatasetServer) -> None:
    assert read(hub, f"hf:org/carded{name}") == texts


def test_what_a_card_does_not_have_is_said(hub: DatasetServer) -> None:
    told = "Those it has: short (train, dev); long (train)."
    assert told in str(read(hub, "hf:org/carded:test"))
    assert told in str(read(hub, "hf:org/carded:long:dev"))
    assert "hf://datasets/org/damaged/README.md: configs: expected a config_name" in str(read(hub, "hf:org/damaged"))


def test_a_folder_of_splits_is_a_configuration(hub: DatasetServer) -> None:
    assert read(hub, "hf:org/several:sst2") == ["y"]
    assert read(hub, "hf:org/several:cola:train") == ["x"]


def test_what_a_dataset_does_not_have_is_said(hub: DatasetServer) -> None:
    assert "the Hub has no dataset org/nothing" in str(read(hub, "hf:org/nothing"))
    assert "found no file for split 'validation' in org/split" in str(read(hub, "hf:org/split:validation"))
    assert "has several configurations (cola, sst2)" in str(read(hub, "hf:org/several"))


@pytest.mark.parametrize("name", ["hf:", "hf:imdb", "hf:org/name:", "hf:org/name:train[:10%]", "hf:org/../x:train"])
def test_a_name_that_is_not_a_dataset_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected hf:ORG/NAME or hf:ORG/NAME:SPLIT"):
        dataset_files(name)


def test_an_address_with_a_star_is_the_files_it_matches() -> None:
    storage = open_storage("memory://starred")
    for name in ("a.txt", "b.txt", "c.csv"):
        storage.write(name, b"x\n")
    assert expand(["memory://starred/*.txt"]) == [
        "memory:///starred/a.txt",
        "memory:///starred/b.txt",
    ]
    with pytest.raises(UsageError, match=r"No file matches memory://starred/\*\.nothing"):
        expand(["memory://starred/*.nothing"])
    storage.remove_all()
