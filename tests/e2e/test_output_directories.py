"""Directories of parts: jobs that end early, queues of one's own and embedded, several jobs, what is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from producer.submit.options import SubmitOptions
from producer.submit.plan import make_plan
from tests.support.cli_processes import Queue
from tests.support.embedded_processes import Home
from tests.support.processes import PLUGINS, Shell, environment, lines, wait_until


def numbered(queue: Queue, count: int) -> str:
    return queue.write("in.txt", *(f"line {n}" for n in range(count)))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_of_a_cancelled_job_the_parts_that_are_done_stay(queue: Queue, shared: Path, tmp_path: Path) -> None:
    out, go = shared / "cancelled", tmp_path / "go"
    source = queue.write("some.txt", *(f"line {n}" for n in range(40)))
    options = ["--chunk-size", "10", "-p", f"until={go}", "-p", "seconds=0", "-o", f"{out}/", "--no-wait"]
    job = queue.submit("--task", "test-wait", source, *options)
    wait_until(lambda: queue.status(job)["status"] == "running", 30, "it runs")
    queue.run("cancel", job)
    wait_until(lambda: queue.status(job)["status"] == "cancelled", 30, "it is cancelled")
    assert not out.exists() or [name for name in names_in(out) if name != "_attempts"] == []
    assert {row["error_code"] for row in queue.results(job)} == {"not_run"}
    go.touch()
    queue.run("retry", job, "--wait")
    assert names_in(out) == ["_SUCCESS", "_manifest.json", *(f"part-{n:05d}.parquet" for n in range(4))]


def test_a_failed_job_leaves_its_parts_and_no_success(queue: Queue, shared: Path) -> None:
    out = shared / "failed"
    options = ["--chunk-size", "1", "-o", f"{out}/", "--max-errors", "0", "-p", "fail=line 5", "-p", "fail_while=/"]
    done = queue.run("submit", "--task", "test-echo", numbered(queue, 9), *options, status=1)
    assert "too_many_errors" in done.stderr
    found = names_in(out)
    assert "_SUCCESS" not in found and "_manifest.json" not in found
    assert "part-00000.parquet" in found
    job = json.loads(queue.run("jobs", "--json", "--limit", "1").stdout)[0]["id"]
    outputs = [row.get("output") for row in queue.results(job)]
    assert outputs[0] == "LINE 0"
    # Other chunks were running when the job ended.
    assert set(outputs) - {None} <= {f"LINE {n}" for n in range(9) if n != 5}
    queue.run("delete", job)
    assert not (out / "_attempts").exists()
    assert "part-00000.parquet" in names_in(out)


def test_vectors_are_typed_ids_are_kept_and_results_can_be_written_again(
    queue: Queue, shared: Path, tmp_path: Path
) -> None:
    rows = [json.dumps({"id": key, "text": "x" * n}) for n, key in enumerate(["a", 7, "7"], start=1)]
    rows.append(json.dumps({"text": "xxxx"}))
    source, out = queue.write("ids.jsonl", *rows), shared / "vectors"
    queue.run("submit", "--task", "test-vector", source, "-o", f"{out}/")
    table = pq.read_table(out / "part-00000.parquet")
    assert table.schema.field("output").type == pa.list_(pa.float32(), 3)
    assert table["output"].to_pylist() == [[1.0, 2.0, float(n)] for n in range(1, 5)]
    assert table["id"].to_pylist() == ["a", "7", "7", "3"]
    manifest = json.loads((out / "_manifest.json").read_text())
    assert "float" in manifest["schema"]["output"]
    assert [row["id"] for row in queue.results(manifest["id"])] == ["a", 7, "7", 3]
    queue.run("results", manifest["id"], "-o", f"{tmp_path}/again/", "--output-format", "jsonl")
    again = lines((tmp_path / "again" / "part-00000.jsonl").read_text())
    assert [row["id"] for row in again] == ["a", 7, "7", 3]
    assert names_in(tmp_path / "again") == ["_SUCCESS", "_manifest.json", "part-00000.jsonl"]
    queue.run("results", manifest["id"], "-o", f"{out}/", status=2)


def test_of_two_jobs_for_one_directory_one_is_refused(queue: Queue, shared: Path, tmp_path: Path) -> None:
    out, go = f"{shared}/both/", tmp_path / "go"
    source = numbered(queue, 4)
    job = queue.submit("--task", "test-wait", source, "-p", f"until={go}", "-o", out, "--no-wait")
    refused = queue.run("submit", "--task", "test-echo", source, "-o", out, status=2).stderr
    assert f"is being written by job {job}" in refused
    go.touch()
    queue.run("wait", job)
    assert names_in(shared / "both") == ["_SUCCESS", "_manifest.json", "part-00000.parquet"]


def test_an_embedded_queue_writes_parts_and_keeps_payloads_in_a_directory(tmp_path: Path) -> None:
    environ = environment(tmp_path, HUGQUEUE_RENEW="0.3")
    shell, home = Shell(environ, tmp_path), Home(environ)
    (tmp_path / "in.txt").write_text("".join(f"line {n} {'x' * 500}\n" for n in range(30)))
    try:
        options = ["--chunk-size", "10", "--store", "store", "-o", "out/", "--output-format", "jsonl"]
        shell.run("submit", "--task", "test-echo", "in.txt", *options)
        assert names_in(tmp_path / "out") == ["_SUCCESS", "_manifest.json", *(f"part-{n:05d}.jsonl" for n in range(3))]
        job = json.loads((tmp_path / "out" / "_manifest.json").read_text())["id"]
        assert len(list((tmp_path / "store" / job / "in").iterdir())) == 3
        assert len(shell.results(job)) == 30
        shell.run("delete", job)
        assert names_in(tmp_path / "store") == []
    finally:
        home.end()


def test_the_same_key_gives_the_same_output_again(queue: Queue, shared: Path, tmp_path: Path) -> None:
    source, other = numbered(queue, 30), queue.write("other.txt", "x")
    submit = ["--task", "test-echo", "--chunk-size", "10", "-o", f"file://{shared}/keyed/", "--idempotency-key"]
    first = queue.run("submit", source, *submit, "one")
    again = queue.run("submit", source, *submit, "one")
    assert "belongs to job" in again.stderr and "all 30 records are in" in first.stderr and again.stdout == first.stdout
    refused = queue.run("submit", other, *submit, "two", status=2).stderr
    assert "already holds an output" in refused
    assert (
        "HUGQUEUE" not in queue.run("submit", other, *submit[:-3], "-o", f"{shared}/free/", *submit[-1:], "two").stderr
    )


def test_a_batch_file_has_its_responses_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9")
    path = tmp_path / "requests.jsonl"
    body = {"model": "org/model", "input": "x"}
    path.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}) + "\n")
    (tmp_path / "there.jsonl").mkdir()
    for out in (f"{tmp_path}/out/", "s3://bucket/out/", str(tmp_path), f"{tmp_path}/there.jsonl"):
        with pytest.raises(UsageError, match=r"name a \.jsonl or \.jsonl\.gz file"):
            make_plan([str(path)], SubmitOptions(format="openai", output=out))


def test_a_directory_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    (tmp_path / "in.txt").write_text("x\n")
    with pytest.raises(UsageError, match=r"in\.txt is not a directory"):
        make_plan([str(tmp_path / "in.txt")], SubmitOptions(task="test-echo", output=f"{tmp_path}/in.txt/out/"))
