"""Whole jobs on a real S3 server: inputs, payloads and outputs lie there, and two workers share them."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem

from common.errors import StorageError, UsageError
from common.queue.heartbeats import live_workers
from common.redis import keys
from common.redis.keys import JobKeys
from common.storage.storage import open_storage
from producer.submit.options import SubmitOptions
from producer.submit.plan import make_plan
from tests.support import tiny_media
from tests.support.cli_processes import Queue, running_queue
from tests.support.processes import PLUGINS, Workers, lines, wait_until
from tests.support.s3_server import BUCKET, S3Server

STORE = f"s3://{BUCKET}/store"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def queue(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    folder = tmp_path_factory.mktemp("queue")
    settings = {"HUGQUEUE_SHARED": f"s3://{BUCKET}/", "HUGQUEUE_STORE_URL": STORE, "HUGQUEUE_MODEL_ROOTS": str(folder)}
    with running_queue(folder, **s3.environ, **settings) as queue:
        second = Workers(queue.environ, folder / "second.log").start()
        wait_until(
            lambda: sum(b.state == "ready" for b in live_workers(queue.server.client)) == 2, 60, "both are ready"
        )
        yield queue
        second.kill()


@pytest.fixture(scope="module")
def files(s3: S3Server) -> AbstractFileSystem:
    return s3.files()


def names_in(files: AbstractFileSystem, folder: str) -> list[str]:
    return sorted(path.removeprefix(f"{BUCKET}/{folder}/") for path in files.find(f"{BUCKET}/{folder}"))


def test_a_job_reads_its_input_in_place_and_leaves_parts_and_a_manifest(
    queue: Queue, files: AbstractFileSystem, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trouble = tmp_path_factory.mktemp("trouble") / "trouble"
    trouble.touch()
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"line {n}" for n in range(200)]}), sink, row_group_size=70)
    files.pipe_file(f"{BUCKET}/in.parquet", sink.getvalue())
    options = ["--chunk-size", "20", "-p", "fail=line 13", "-p", f"fail_while={trouble}"]
    queue.run(
        "submit", "--task", "test-echo", f"s3://{BUCKET}/in.parquet", *options, "-o", f"s3://{BUCKET}/out/", status=3
    )
    parts = [f"part-{n:05d}.parquet" for n in range(11)]  # of row groups of 70, 70 and 60
    assert names_in(files, "out") == ["_SUCCESS", "_manifest.json", *parts]
    manifest = json.loads(files.cat_file(f"{BUCKET}/out/_manifest.json"))
    assert [part["failed"] for part in manifest["parts"]] == [1, *[0] * 10]
    trouble.unlink()
    done = queue.run("retry", manifest["id"], "--wait")
    assert f"200 records are in s3://{BUCKET}/out" in done.stderr
    assert names_in(files, "out") == ["_SUCCESS", "_manifest.json", *parts]
    table = pq.read_table(f"{BUCKET}/out", filesystem=files)
    assert table["output"].to_pylist() == [f"LINE {n}" for n in range(200)]
    assert names_in(files, "store") == []


@pytest.mark.faults
def test_payloads_lie_on_the_server_and_go_with_their_job(queue: Queue, files: AbstractFileSystem) -> None:
    texts = [json.dumps({"id": f"r{n}", "text": f"line {n} {'x' * 300}"}) for n in range(60)]
    job = queue.submit("--task", "test-echo", queue.write("in.jsonl", *texts), "--chunk-size", "10")
    queue.run("wait", job)
    found = [(row["id"], row["output"]) for row in queue.results(job)]
    assert found == [(f"r{n}", f"LINE {n} {'X' * 300}") for n in range(60)]
    assert len(names_in(files, f"store/{job}")) == 12
    assert (queue.server.client.memory_usage(JobKeys.of(job).input) or 0) < 1500
    queue.run("delete", job)
    assert names_in(files, f"store/{job}") == []
    assert not queue.server.client.hexists(keys.STORED, job)


@pytest.mark.faults
def test_lines_are_read_in_place_by_a_pattern(queue: Queue, files: AbstractFileSystem) -> None:
    for number in range(2):
        files.pipe_file(f"{BUCKET}/lines/{number}.txt", b"".join(b"%d-%d\n" % (number, n) for n in range(30)))
    pattern, out = f"s3://{BUCKET}/lines/*.txt", f"s3://{BUCKET}/lines-out/"
    queue.run("submit", "--task", "test-echo", pattern, "--chunk-size", "20", "-o", out, "--output-format", "jsonl")
    rows = [row for n in range(4) for row in lines(files.cat_file(f"{BUCKET}/lines-out/part-{n:05d}.jsonl").decode())]
    assert [row["output"] for row in rows] == [f"{number}-{n}" for number in range(2) for n in range(30)]
    assert rows[31]["id"] == f"s3://{BUCKET}/lines/1.txt:1"
    job = json.loads(files.cat_file(f"{BUCKET}/lines-out/_manifest.json"))["id"]
    assert queue.results(job) == rows
    assert "s3://hugqueue/lines-out already holds an output" in (
        queue.run("submit", "--task", "test-echo", pattern, "-o", out, status=2).stderr
    )


@pytest.mark.faults
def test_images_are_read_in_place(queue: Queue, files: AbstractFileSystem) -> None:
    model = tiny_media.vit(queue.directory / "vit")
    paths = tiny_media.photos(queue.directory / "photos")[:3]
    for path in paths:
        files.pipe_file(f"{BUCKET}/photos/{path.name}", path.read_bytes())
    addresses = [f"s3://{BUCKET}/photos/{path.name}" for path in (*paths, Path("nowhere.png"))]
    listed, options = queue.write("list.csv", "path", *addresses), ["--task", "image-classification", "-m", str(model)]
    there = lines(queue.run("submit", *options, listed, "--column", "path", "--wait", status=3).stdout)
    here = lines(queue.run("submit", *options, *map(str, paths), "--wait").stdout)
    assert [row.get("output") for row in there] == [*(row["output"] for row in here), None]
    assert there[3]["error_code"] == "no_file"
    assert [row["image"] for row in there] == addresses
    by_pattern = lines(queue.run("submit", *options, f"s3://{BUCKET}/photos/*", "--wait").stdout)
    assert [row["output"] for row in by_pattern] == [row["output"] for row in here]


@pytest.fixture
def here(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as one that reaches the server."""
    for name, value in (s3.environ | {"HUGQUEUE_SHARED": "s3://"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(PLUGINS))
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("option", ["store", "output", "input"])
def test_a_bucket_that_is_not_there_is_said_and_not_made(
    here: None, s3: S3Server, option: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = tmp_path_factory.mktemp("in") / "in.txt"
    text.write_text("x\n")
    options = {"store": "s3://nowhere/x"} if option == "store" else {"output": "s3://nowhere/x/"}
    inputs = ["s3://nowhere/x.txt"] if option == "input" else [str(text)]
    with pytest.raises(UsageError, match=r"s3://nowhere/x(\.txt)?: there is no (bucket nowhere|such file)\.$"):
        make_plan(inputs, SubmitOptions(task="test-echo", **({} if option == "input" else options)))
    assert not s3.files().exists("nowhere")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_ACCESS_KEY_ID", "", "Unable to locate credentials"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "Could not connect to the endpoint URL"),
    ],
)
def test_a_server_that_cannot_be_used_is_said(
    here: None, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"--store: Cannot list s3://{BUCKET}/x.*: {words}"):
        make_plan([__file__], SubmitOptions(task="test-echo", format="txt", store=f"s3://{BUCKET}/x"))


def test_files_written_by_others_after_a_listing_are_seen(here: None, s3: S3Server) -> None:
    storage = open_storage(f"s3://{BUCKET}/seen")
    storage.write("a", b"1")
    assert storage.names() == ["a"]
    s3.files().pipe_file(f"{BUCKET}/seen/b", b"2")
    assert storage.names() == ["a", "b"]
    assert storage.move("b", "c")
    s3.files().rm_file(f"{BUCKET}/seen/a")
    assert (storage.read("a"), storage.move("a", "d"), storage.names()) == (None, False, ["c"])
    storage.remove_all()
    assert storage.names() == []


def test_keys_that_the_server_does_not_know_are_said(here: None, s3: S3Server) -> None:
    with s3.locked(), pytest.raises(StorageError, match=r"The AWS Access Key Id you provided does not exist"):
        open_storage(f"s3://{BUCKET}/x").check()
