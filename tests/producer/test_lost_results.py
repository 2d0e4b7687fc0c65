"""What is gone from the store is never taken for empty: it is told, replaces no file, and is run again by `retry`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ResultsLost
from common.records import Counts, Json
from common.results import ResultRow
from producer import Client
from producer.cli.show_results import save_results
from producer.job_handle import JobHandle
from producer.outputs import open_output
from tests.support.cli_processes import Queue
from tests.support.processes import PLUGINS, lines

COUNT = 40
TEXTS = [f"line {n}" for n in range(COUNT)]
OUTPUTS = [text.upper() for text in TEXTS]


@pytest.fixture
def client(queue: Queue, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.setenv("HUGQUEUE_SHARED", str(shared))
    with Client(queue.server.url) as opened:
        yield opened


def run(client: Client, **options: Json) -> JobHandle:
    """Run a job of ten chunks to its end."""
    job = client.submit(task="test-echo", records=TEXTS, chunk_size=4, **options)
    job.wait(60)
    return job


def read(job: JobHandle) -> list[ResultRow]:
    """Return the rows that are there; at their end it is told that some are lost."""
    rows = job.results()
    found = []
    with pytest.raises(ResultsLost):
        found.extend(iter(lambda: next(rows), None))
    return found


def assert_whole_after_retry(job: JobHandle) -> None:
    job.retry()
    job.wait(60)
    assert [row.output for row in job.results()] == OUTPUTS
    assert job.refresh().counts == Counts(COUNT, 0)


@pytest.mark.parametrize("key", ["input", "output", "commit_history"])
def test_a_key_that_redis_has_lost_is_reported(queue: Queue, client: Client, key: str) -> None:
    job = run(client)
    assert client.connection.store.client.delete(f"hugqueue:job:{job.id}:{key}") == 1
    path = Path(queue.write("out.jsonl", "yesterday's"))
    told = queue.run("results", job.id, "-o", str(path), status=1).stderr
    assert "results_lost" in told and job.id in told
    assert path.read_text() == "yesterday's\n"
    rows = lines(queue.run("results", job.id, status=1).stdout)
    assert [row["id"] for row in rows] == list(range(COUNT)), "what is there is given"
    if key == "input":
        assert [row["output"] for row in rows] == OUTPUTS
    else:
        assert_whole_after_retry(job)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_a_job_deleted_while_it_is_read_writes_no_file(client: Client, tmp_path: Path, name: str) -> None:
    job, path = run(client), tmp_path / name
    path.write_text("yesterday's")

    def rows() -> Iterator[ResultRow]:
        for number, row in enumerate(job.results()):
            if number == 5:
                job.delete()
            yield row

    with (
        pytest.raises(ResultsLost, match="was deleted"),
        open_output(path, job.state.spec, job.state.spec.columns) as writer,
    ):
        writer.write_all(rows())
    assert path.read_text() == "yesterday's"


def test_removed_files_of_a_store_are_reported_and_run_again(client: Client, shared: Path) -> None:
    job = run(client, store=str(shared / "store"))
    for path in sorted((shared / "store" / job.id / "out").iterdir())[:3]:
        path.unlink()
    codes = [row.error.code for row in read(job) if row.error]
    assert codes == ["results_lost"] * 12
    assert_whole_after_retry(job)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_removed_parts_are_reported_and_run_again(client: Client, shared: Path, form: str) -> None:
    out = shared / f"parts-{form}"
    job = run(client, output=out, output_format=form)
    (out / f"part-00003.{form}").unlink()
    assert len([row for row in read(job) if row.error]) == 4
    assert job.state.spec.output
    with pytest.raises(ResultsLost, match="1 of 10"):
        save_results(job, job.state.spec.output)
    assert_whole_after_retry(job)
    assert (out / "_SUCCESS").exists() and len(list(out.glob("part-*"))) == 10


def test_a_lost_part_with_failures_counts_its_records_once(client: Client, shared: Path, tmp_path: Path) -> None:
    out, trouble = shared / "failures", tmp_path / "trouble"
    trouble.touch()
    job = run(client, output=out, params={"fail": "line 13", "fail_while": str(trouble)})
    assert job.state.counts == Counts(COUNT - 1, 1)
    (out / "part-00003.parquet").unlink()
    (out / "part-00005.parquet").unlink()
    trouble.unlink()
    assert_whole_after_retry(job)
    assert json.loads((out / "_manifest.json").read_text())["counts"]["succeeded"] == COUNT
