"""Only a completed job replaces a file: what failed or was stopped says so, and how to get what is done."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from common.errors import UsageError
from common.jobs import Job, JobSpec, JobStatus
from common.payloads.result_tables import ResultTable
from common.records import Counts, Failure, Outcome
from common.results import ResultRow
from producer import Client
from producer.cli.watch import describe_unwritten
from producer.outputs.parquet import to_table
from producer.outputs.targets import OutputFile
from producer.result_files import write_file
from tests.support.cli_processes import Queue
from tests.support.processes import PLUGINS, lines, wait_until


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out/"])
def test_a_job_that_fails_writes_nothing(queue: Queue, name: str) -> None:
    source = queue.write("in.txt", *(f"line {n}" for n in range(9)))
    before = set(queue.directory.iterdir())
    if not name.endswith("/"):
        queue.write(name, "yesterday's")
    options = ["--chunk-size", "1", "--max-errors", "0", "-p", "fail=line 5", "-p", "fail_while=/", "-o", name]
    told = queue.run("submit", "--task", "test-echo", source, *options, status=1).stderr
    assert f"{name} was not written" in told
    [job] = json.loads(queue.run("jobs", "--json", "--limit", "1").stdout)
    assert f"`producer results {job['id']} -o" in told
    if name.endswith("/"):
        assert set(queue.directory.iterdir()) == before
    else:
        assert (queue.directory / name).read_text() == "yesterday's\n"


@pytest.mark.parametrize(("code", "done", "advised"), [("bad_param", 0, []), ("no_worker", 2, ["results", "retry"])])
def test_only_what_can_help_is_advised_of_an_output_that_is_not_written(
    code: str, done: int, advised: list[str]
) -> None:
    spec = JobSpec("0123456789ab", "test-echo")
    job = Job(spec, JobStatus.FAILED, records=9, counts=Counts(succeeded=done), failure=Failure(code, "no"))
    told = describe_unwritten(job, "out.csv")
    assert told.startswith("out.csv was not written") and re.findall(r"`producer (\w+)", told) == advised


def test_results_of_a_stopped_job_replace_no_file(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    source = queue.write("in.txt", *(f"line {n}" for n in range(20)))
    old = Path(queue.write("old.jsonl", "yesterday's"))
    options = ["--chunk-size", "1", "-p", f"until={tmp_path}/go", "-o", "old.jsonl"]
    submitting = queue.popen("submit", "--task", "test-wait", source, *options)
    [job] = wait_until(lambda: json.loads(queue.run("jobs", "--json", "--status", "running").stdout), 30, "it runs")
    queue.run("cancel", job["id"])
    _, told = submitting.communicate(timeout=60)
    assert (submitting.returncode, old.read_text()) == (1, "yesterday's\n")
    assert "old.jsonl was not written: the job is cancelled" in told
    refused = queue.run("results", job["id"], "-o", "old.jsonl", status=2).stderr
    assert "exists, and only" in refused and old.read_text() == "yesterday's\n"
    queue.run("results", job["id"], "--failed", "-o", "old.jsonl", status=2)
    assert old.read_text() == "yesterday's\n"
    queue.run("results", job["id"], "-o", "new.jsonl")
    assert {row["error_code"] for row in lines((queue.directory / "new.jsonl").read_text())} == {"not_run"}
    with Client(queue.server.url) as client, pytest.raises(UsageError, match="exists, and only"):
        client.job(job["id"]).write(old, check=False)
    (tmp_path / "go").touch()
    queue.run("retry", job["id"], "-o", "old.jsonl")
    assert [row["output"] for row in lines(old.read_text())] == [f"LINE {n}" for n in range(20)]


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "table"])
def test_late_columns_and_types_are_read_once_more_and_no_more_often(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.outputs.parquet._GROUP_ROWS", 4)
    read = []

    def rows() -> Iterator[ResultRow]:
        read.append(name)
        for n in range(40):
            value = "word" if n == 21 else n
            yield ResultRow(n, "a", Outcome("b"), {"text": "a", "n": value, f"late {n}": n, "id": n})

    spec = JobSpec("0123456789ab", "test-echo", keep=None, columns={"text": "text", "n": "int"})
    if name == "table":
        found = to_table(rows, ResultTable.of(spec, pa.string())).to_pydict()
    else:
        assert write_file(Job(spec, JobStatus.COMPLETED), rows, OutputFile(tmp_path / name), pa.string()) == 40
        reader = pa_csv.read_csv if name.endswith(".csv") else pq.read_table
        found = reader(tmp_path / name).to_pydict()
    assert len(read) == 2
    assert list(found)[:43] == ["text", "n", "late 0", "id", *(f"late {n}" for n in range(1, 40))]
    assert found["n"] == [str(n) if n != 21 else "word" for n in range(40)]
    assert [found[f"late {n}"][n] for n in range(40)] == found["id"] == list(range(40))
