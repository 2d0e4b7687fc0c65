"""Chains: jobs that wait for others, and read their results, with real workers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hugqueue import Client, JobFailed
from tests.support.cli_processes import Queue, running_queue
from tests.support.processes import Shell, lines, wait_until
from tests.support.tiny_models import classifier, masked_bert

CSV = "id,review,text,stars\n" + "".join(f"r{n},x,text number {n},{n % 5}\n" for n in range(40))


@pytest.fixture(scope="module")
def queue(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    more = {"HUGQUEUE_SHARED": str(shared), "HUGQUEUE_MODEL_ROOTS": str(shared)}
    with running_queue(tmp_path_factory.mktemp("queue"), **more) as running:
        yield running


def accepted(shell: Shell, *arguments: str) -> str:
    return shell.run("submit", "--no-wait", *arguments).stdout.strip()


def gate(queue: Queue, path: Path) -> str:
    """Submit a job that ends once `path` is there; it runs when this returns."""
    started = path.with_suffix(".started")
    params = ("-p", f"until={path}", "-p", f"started={started}")
    job = accepted(queue, "--task", "test-wait", queue.write("gate.txt", "gate"), *params)
    wait_until(started.exists, 60)
    return job


def statuses(queue: Queue, *jobs: str) -> list[str]:
    return [queue.status(job)["status"] for job in jobs]


def results(queue: Queue, job: str) -> list[dict[str, Any]]:
    return lines(queue.run("results", job, "--json").stdout)


def test_classify_then_embed_is_two_commands(queue: Queue, shared: Path, tmp_path: Path) -> None:
    labels, vectors, source = classifier(shared / "labels"), masked_bert(shared / "vectors"), tmp_path / "in.csv"
    source.write_text(CSV)
    first = gate(queue, tmp_path / "open")
    embed, out = ("--task", "embedding", "-m", str(vectors)), shared / tmp_path.name
    classify = ("--task", "text-classification", "-m", str(labels), str(source), "--chunk-size", "8")
    second = accepted(queue, *classify, "--after", first[:9])
    third = accepted(queue, *embed, f"job:{second}", "-o", f"{out}/")
    assert statuses(queue, second, third) == ["blocked", "blocked"]
    assert (queue.status(second)["after"], queue.status(third)["after"]) == ([first], [second])
    assert f"blocked (waits for job {first} (0 %))" in queue.run("status", second).stdout
    listed = json.loads(queue.run("jobs", "--status", "blocked", "--json").stdout)
    assert {job["id"] for job in listed} == {second, third}
    (tmp_path / "open").touch()
    said = queue.run("watch", third).stderr
    assert f"waits for job {second}" in said and f"job {third}: completed, 40 succeeded" in said

    table = pq.read_table(out)
    assert table.column_names[:6] == ["id", "review", "text", "stars", "text-classification", "output"]
    given = results(queue, second)
    assert table["text-classification"].to_pylist() == [row["output"] for row in given]
    assert table["id"].to_pylist() == [f"r{n}" for n in range(40)]
    direct = results(queue, queue.submit(*embed, str(source), "--wait", "--json") and queue.status("@last")["id"])
    assert np.allclose(np.stack(table["output"].to_pylist()), [row["output"] for row in direct], atol=1e-5)
    # An input that is read in place, Arrow types, and a chain of three.
    again = accepted(queue, "--task", "test-echo", f"job:{third}", "--keep", "stars,text-classification")
    queue.run("wait", again)
    row = results(queue, again)[7]
    assert row == {"stars": "2", "text-classification": given[7]["output"], "id": "r7", "output": "TEXT NUMBER 7"}


def test_results_keep_ids_columns_and_failures(queue: Queue, shared: Path, tmp_path: Path) -> None:
    source, broken = tmp_path / "in.jsonl", tmp_path / "broken"
    source.write_text("".join(json.dumps({"id": f"r{n}", "text": f"t{n}", "n": n}) + "\n" for n in range(6)))
    broken.touch()
    echo = ("--task", "test-echo")
    failing = (*echo, "-p", "fail=t2", "-p", f"fail_while={broken}", "--chunk-size", "2")
    first = accepted(queue, *failing, str(source), "--output-column", "upper", "--store", f"{shared}/store")
    second = accepted(queue, *echo, f"job:{first}", "--template", "{text} is {upper}", "--keep", "n,upper")
    third = accepted(queue, *echo, f"job:{first}", "--column", "upper", "--limit", "3", "--keep", "none")
    assert queue.run("wait", second, third, status=3)
    rows = results(queue, second)
    assert rows[1] == {"n": 1, "upper": "T1", "id": "r1", "output": "T1 IS T1"}
    assert (rows[2]["id"], rows[2]["error_code"]) == ("r2", "input_failed")
    assert "test_failure: asked to fail 't2'" in rows[2]["error_message"]
    assert [row.get("output") for row in results(queue, third)] == ["T0", "T1", None]
    broken.unlink()
    queue.run("retry", first)
    queue.run("retry", second)
    queue.run("wait", second)
    assert [row["output"] for row in results(queue, second)] == [f"T{n} IS T{n}" for n in range(6)]


def test_a_failure_cancels_the_rest_and_says_so(queue: Queue, tmp_path: Path) -> None:
    echo, text = ("--task", "test-echo"), queue.write("in.txt", "a", "b")
    first = gate(queue, tmp_path / "open")
    second = accepted(queue, *echo, text, "--after", first)
    third = accepted(queue, *echo, f"job:{second}")
    anyway = accepted(queue, *echo, text, "--after", first, "--after", second, "--after-any")
    refused = queue.run("delete", first, status=2).stderr
    assert f"Job {first} is running" in refused
    said = queue.run("cancel", first).stderr
    assert f"2 jobs wait for it and are cancelled: {second}, {third}" in said
    assert "was cancelled: job" in queue.run("watch", third, status=1).stderr
    queue.run("wait", anyway)
    assert statuses(queue, first, second, third, anyway) == ["cancelled", "cancelled", "cancelled", "completed"]
    reason = {"code": "predecessor_failed", "message": f"job {first} was cancelled"}
    assert queue.status(third)["error"] == reason
    with Client(queue.server.url) as client:
        with pytest.raises(JobFailed, match=f"was cancelled: job {first} was cancelled") as caught:
            client.job(third).wait(check=True)
        assert caught.value.code == "predecessor_failed"
    late = queue.run("submit", "--no-wait", *echo, text, "--after", first, status=1)
    assert f"job {first} was cancelled" in late.stderr
    (tmp_path / "open").touch()
    assert f"in this order: {second}, {third}" in queue.run("retry", first).stderr
    queue.run("retry", second)
    queue.run("retry", third)
    queue.run("wait", third)
    assert [row["output"] for row in results(queue, third)] == ["A", "B"]


def test_the_results_of_a_job_are_needed_by_what_reads_them(queue: Queue, tmp_path: Path) -> None:
    echo = ("--task", "test-echo")
    first = accepted(queue, *echo, queue.write("in.txt", "a"))
    queue.run("wait", first)
    reader = accepted(queue, *echo, f"job:{first}", "--after-any")
    queue.run("wait", reader)
    waiting = gate(queue, tmp_path / "open")
    second = accepted(queue, *echo, f"job:{first}", "--after", waiting, "--after-any")
    assert f"needed by {second}" in queue.run("delete", first, status=2).stderr
    assert f"the input of {reader}" in queue.run("delete", first, "--force").stderr
    shown = queue.run("results", reader, "--json")
    assert lines(shown.stdout) == [{"id": 0, "output": "A"}] and "without their inputs" in shown.stderr
    (tmp_path / "open").touch()
    queue.run("wait", second, status=1)
    error = queue.status(second)["error"]
    assert error["code"] == "results_lost" and first in error["message"]


def test_what_cannot_be_an_input_is_refused(queue: Queue) -> None:
    def refusal(*arguments: str) -> str:
        return queue.run("submit", "--task", "text-classification", *arguments, status=2).stderr

    text = queue.write("in.txt", "a")
    job = accepted(queue, "--task", "embedding", text)
    queue.run("cancel", job)
    assert "is an input by itself" in refusal(f"job:{job}", text)
    assert "--chunk-size does not go with" in refusal(f"job:{job}", "--chunk-size", "3")
    assert "no texts" in refusal(f"job:{job}", "--column", "output")
    assert "has no column 'x'" in refusal(f"job:{job}", "--column", "x")
    assert "There is no job" in refusal("job:0123456789ab")
    assert "There is no job" in refusal(text, "--after", "0123456789ab")
    assert "name the jobs to wait for" in refusal(text, "--after-any")
    assert "Leave it out" in refusal(f"job:{job}", "--dry-run")
    finetune = queue.run("finetune", f"job:{job}", "-m", "org/name", status=2).stderr
    assert "producer results JOB -o FILE" in finetune
