"""Data outside Redis: payloads in files, inputs read in place, outputs that workers write; with real workers."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from common.redis import keys
from common.redis.keys import JobKeys
from tests.support.cli_processes import Queue
from tests.support.processes import RedisServer, Shell, Workers, wait_until

StartWorkers = Callable[..., Workers]


def lines(path: Path, count: int) -> Path:
    path.write_text("".join(f"line {n}\n" for n in range(count)))
    return path


def expected(count: int) -> list[str]:
    return [f"LINE {n}" for n in range(count)]


def outputs(text: str) -> list[str]:
    return [json.loads(line)["output"] for line in text.splitlines()]


def test_payloads_in_files_leave_redis_small_and_go_with_their_job(
    start_workers: StartWorkers, shell: Shell, server: RedisServer, shared: Path, tmp_path: Path
) -> None:
    shell.environ["HUGQUEUE_STORE_URL"] = str(shared)
    start_workers(HUGQUEUE_STORE_URL=str(shared))
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": f"line {n} {'x' * 500}"}) + "\n" for n in range(400)))
    job = shell.submit("--task", "test-echo", str(source), "--chunk-size", "50")
    shell.run("wait", job)
    assert [row["output"] for row in shell.results(job)] == [f"LINE {n} {'X' * 500}" for n in range(400)]
    names = JobKeys.of(job)
    assert sum(server.client.memory_usage(key) or 0 for key in (names.input, names.output)) < 2000
    assert len(list((shared / job).rglob("*.arrow"))) == 16
    shell.run("delete", job)
    assert not (shared / job).exists()
    assert server.client.hlen(keys.STORED) == 0


def test_files_of_a_job_whose_time_is_over_are_removed_by_a_worker(
    start_workers: StartWorkers, shell: Shell, server: RedisServer, shared: Path, tmp_path: Path
) -> None:
    shell.environ |= {"HUGQUEUE_STORE_URL": str(shared), "HUGQUEUE_RESULT_TTL": "1"}
    workers = start_workers(HUGQUEUE_STORE_URL=str(shared))
    text = tmp_path / "in.txt"
    text.write_text("x" * 2000 + "\n")
    job = shell.submit("--task", "test-echo", str(text))
    wait_until(lambda: not server.client.exists(JobKeys.of(job).job), 30, "the job's time to live is over")
    assert list((shared / job).rglob("*.arrow"))
    workers.stop()
    start_workers(HUGQUEUE_STORE_URL=str(shared))
    wait_until(lambda: not (shared / job).exists(), 30, "its files are gone")
    assert server.client.hlen(keys.STORED) == 0


def test_a_worker_opens_only_the_stores_it_was_started_with(queue: Queue, tmp_path: Path) -> None:
    text, store = tmp_path / "in.txt", tmp_path / "store"
    text.write_text("x" * 2000 + "\n")
    job = Shell(queue.environ | {"HUGQUEUE_STORE_URL": str(store)}, tmp_path).submit("--task", "test-echo", str(text))
    queue.run("wait", job, status=1)
    error = queue.status(job)["error"]
    assert error["code"] == "address_not_allowed"
    assert str(store) in error["message"]
    assert "HUGQUEUE_SHARED" in error["message"]
    assert "Traceback" not in (queue.directory / "workers.log").read_text()


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_shared_input_is_read_in_place(queue: Queue, shared: Path, kind: str) -> None:
    source = shared / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": [f"line {n}" for n in range(200)]}), source, row_group_size=70)
    elif kind == "jsonl":
        source.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(200)))
    else:
        lines(source, 200)
    done = queue.run("submit", "--task", "test-echo", str(source), "--chunk-size", "30", "--wait")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["output"] for row in rows] == expected(200)
    assert [row["id"] for row in rows] == list(range(200))
    [job_id] = queue.server.client.zrange(keys.JOBS, -1, -1)
    payloads = queue.server.client.hvals(JobKeys.of(job_id.decode()).input)
    assert all(str(source).encode() in payload and b"line 1" not in payload for payload in payloads)


def test_an_input_that_changes_while_the_job_runs_fails_it(
    start_workers: StartWorkers, shell: Shell, shared: Path
) -> None:
    shell.environ["HUGQUEUE_SHARED"] = str(shared)
    source = lines(shared / "in.txt", 20)
    job = shell.submit("--task", "test-echo", str(source))
    lines(source, 21)
    start_workers(HUGQUEUE_SHARED=str(shared))
    shell.run("wait", job, status=1)
    assert "changed after the job was submitted" in shell.status(job)["error"]["message"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("fate", ["changed", "gone"])
def test_results_outlive_an_input_that_was_read_in_place(queue: Queue, shared: Path, kind: str, fate: str) -> None:
    source = shared / f"{fate}.{kind}"
    table = pa.table({"id": [f"id {n}" for n in range(40)], "text": [f"line {n}" for n in range(40)]})
    if kind == "parquet":
        pq.write_table(table, source)
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    job = queue.submit("--task", "test-echo", str(source), "--chunk-size", "10")
    queue.run("wait", job)
    if fate == "gone":
        source.unlink()
    else:
        source.write_text("something else\n")
    done = queue.run("results", job)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["id"], row.get("text"), row["output"]) for row in rows] == [
        (f"id {n}", None, f"LINE {n}") for n in range(40)
    ]
    assert done.stderr.count("without their inputs") == 1
    queue.run("results", job, "-o", f"{fate}-{kind}.csv")
    assert len((queue.directory / f"{fate}-{kind}.csv").read_text().splitlines()) == 41


def test_of_an_input_that_changed_the_records_that_were_not_run_are_missed(
    start_workers: StartWorkers, shell: Shell, shared: Path
) -> None:
    shell.environ["HUGQUEUE_SHARED"] = str(shared)
    source = lines(shared / "missed.txt", 20)
    job = shell.submit("--task", "test-echo", str(source), "--chunk-size", "10")
    shell.run("cancel", job)
    source.unlink()
    told = shell.run("results", job, "-o", "missed.jsonl", status=1).stderr
    assert "20 of 20 records" in told and "not run" in told
    assert not (shell.directory / "missed.jsonl").exists()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_workers_write_a_part_for_each_chunk(queue: Queue, shared: Path, tmp_path: Path, form: str) -> None:
    source, out = lines(tmp_path / "in.txt", 95), shared / f"parts-{form}"
    options = ["--chunk-size", "10", "-o", f"{out}/", "--output-format", form]
    done = queue.run("submit", "--task", "test-echo", str(source), *options, "-p", "fail=line 7", status=3)
    assert done.stdout == ""
    names = sorted(path.name for path in out.iterdir())
    assert names == ["_SUCCESS", "_manifest.json", *(f"part-{n:05d}.{form}" for n in range(10))]
    if form == "parquet":
        table = ds.dataset(out).to_table().to_pydict()
        assert pandas.read_parquet(out)["id"].tolist() == table["id"]
        found, failed = table["output"], table["error_code"]
    else:
        rows = [json.loads(line) for name in names[2:] for line in (out / name).read_text().splitlines()]
        found, failed = [row.get("output") for row in rows], [row.get("error_code") for row in rows]
    wanted = expected(95)
    assert [output for output in found if output] == [output for n, output in enumerate(wanted) if n != 7]
    assert [n for n, code in enumerate(failed) if code] == [7]
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["counts"] == {"records": 95, "succeeded": 94, "failed": 1, "truncated": 0}
    assert [part["failed"] for part in manifest["parts"]] == [1, *[0] * 9]
    assert manifest["ran_on"]["device"] == "cpu"
    assert len(queue.results(manifest["id"])) == 95


def test_a_retry_replaces_the_parts_that_had_failures(queue: Queue, shared: Path, tmp_path: Path) -> None:
    source, out, trouble = lines(tmp_path / "in.txt", 40), shared / "retried", tmp_path / "trouble"
    trouble.touch()
    options = ["--chunk-size", "10", "-o", f"{out}/", "-p", "fail=line 13", "-p", f"fail_while={trouble}"]
    queue.run("submit", "--task", "test-echo", str(source), *options, status=3)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    trouble.unlink()
    job = json.loads((out / "_manifest.json").read_text())["id"]
    queue.run("retry", job, "--wait")
    assert pq.read_table(out)["output"].to_pylist() == expected(40)
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    replaced = {name for name in after if after[name] != before[name]}
    assert replaced == {"part-00001.parquet", "_manifest.json", "_SUCCESS"}


def test_a_directory_that_is_not_shared_is_written_by_the_command(queue: Queue, tmp_path: Path) -> None:
    source, out = lines(tmp_path / "in.txt", 25), tmp_path / "out"
    queue.run("submit", "--task", "test-echo", str(source), "--chunk-size", "10", "-o", f"{out}/")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["_SUCCESS", "_manifest.json", *(f"part-{n:05d}.parquet" for n in range(3))]
    refused = queue.run("submit", "--task", "test-echo", str(source), "-o", f"{out}/", status=2).stderr
    assert "already holds an output" in refused
    refused = queue.run(
        "submit", "--task", "test-echo", str(source), "-o", f"{tmp_path}/other/", "--no-wait", status=2
    ).stderr
    assert "HUGQUEUE_SHARED" in refused


def test_parts_of_a_job_that_did_not_end_well_have_no_success(shell: Shell, tmp_path: Path) -> None:
    source = lines(tmp_path / "in.txt", 25)
    job = shell.submit("--task", "test-echo", str(source), "--chunk-size", "10")
    shell.run("cancel", job)
    shell.run("results", job, "-o", f"file://{tmp_path}/out/")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"part-{n:05d}.parquet" for n in range(3)]


def test_results_follow_a_running_job_in_order(queue: Queue, tmp_path: Path) -> None:
    source = lines(tmp_path / "in.txt", 20)
    job = queue.submit("--task", "test-wait", str(source), "--chunk-size", "1", "-p", "seconds=0.2")
    follower = queue.popen("results", job, "--follow", stderr=subprocess.STDOUT)
    assert follower.stdout
    first = follower.stdout.readline()
    assert queue.status(job)["status"] == "running"
    rest = follower.stdout.read()  # not `communicate`, which passes over what `readline` has buffered
    assert follower.wait(60) == 0, rest
    assert outputs(first + rest) == expected(20)
