"""`from hugqueue import Client`: submitting, waiting and reading results from a program."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import hugqueue
from common import errors
from common.errors import JobFailed, StoreUnavailable, UnknownJob, UsageError, WaitTimedOut
from common.jobs import JobStatus
from hugqueue import Client, JobHandle
from tests.support.cli_processes import Queue, python_without
from tests.support.embedded_processes import Home
from tests.support.processes import PLUGINS, ROOT, environment, free_port, wait_until


@pytest.fixture
def client(queue: Queue) -> Iterator[Client]:
    with Client(queue.server.url) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _test_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))


def outputs(job: JobHandle) -> list[object]:
    return [row.output for row in job.results()]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, producer; print({'redis', 'pyarrow', 'click', 'celery'} & set(sys.modules), producer.Client)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set() <class 'producer.client.Client'>\n"


def test_the_package_for_programs_has_the_client_and_all_errors() -> None:
    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert (ours - {"Cancelled"}) | {"Client", "JobHandle"} == set(hugqueue.__all__)
    assert all(getattr(hugqueue, name).__name__ == name for name in hugqueue.__all__)


def test_records_of_every_kind_come_back_in_order_with_their_ids(client: Client) -> None:
    records = ["one", {"text": "two", "id": "b"}, ("c", "three"), (7, {"text": "four"})]
    job = client.submit(task="test-echo", records=iter(records), name="all kinds", labels={"run": "7"})
    state = job.wait(60)
    assert [worker.state for worker in client.workers()] == ["ready"]
    assert (state.status, state.counts.succeeded, state.spec.labels) == (JobStatus.COMPLETED, 4, {"run": "7"})
    rows = list(job.results())
    assert [(row.id, row.input, row.output) for row in rows] == [
        (0, "one", "ONE"),
        ("b", "two", "TWO"),
        ("c", "three", "THREE"),
        (7, "four", "FOUR"),
    ]
    assert all(row.error is None and not row.truncated for row in rows)


def test_a_value_that_is_not_a_record_fails_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGQUEUE_MAX_RECORD_BYTES", "20")
    values = ["fine", 7, {"words": "x"}, object(), {"text": np.int64(3)}, "x" * 21]
    job = client.submit(task="test-echo", records=values)
    job.wait(60)
    errors = [row.error for row in job.results()]
    codes = [error.code if error else None for error in errors]
    assert codes[:4] == [None, "bad_json", "missing_field", "wrong_type"] and codes[5] == "too_large"
    assert errors[1] and errors[1].message.startswith("record 1: expected")


def test_paths_are_read_as_the_command_reads_them(client: Client, queue: Queue) -> None:
    first, second = Path(queue.write("a.txt", "x", "y")), Path(queue.write("b.txt", "z"))
    job = client.submit(task="test-echo", records=str(first))
    several = client.submit(task="test-echo", records=[first, second])
    job.wait(60)
    several.wait(60)
    assert outputs(job) == ["X", "Y"]
    assert [row.id for row in several.results()] == [f"{first}:0", f"{first}:1", f"{second}:0"]


@pytest.mark.parametrize("records", [[], 7, [Path("a.txt"), "a text"], "/nowhere/x.txt"])
def test_what_cannot_be_submitted_is_refused_at_once(client: Client, records: object) -> None:
    before = len(client.jobs())
    with pytest.raises(UsageError):
        client.submit(task="test-echo", records=records)  # type: ignore[arg-type]
    assert len(client.jobs()) == before


def test_jobs_are_chosen_by_a_status_that_there_is(client: Client) -> None:
    with pytest.raises(UsageError, match="status: expected one of submitting, blocked, queued"):
        client.jobs(status="done")
    with pytest.raises(UsageError, match="limit"):
        client.jobs(limit=-1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        *(({"chunk_size": size}, "expected a number of records from 1") for size in (0, -1, 10**9, "a")),
        ({"device": "tpu"}, "expected one of auto, cpu, gpu"),
        ({"params": {"a": object()}}, "JSON"),
        ({"max_errors": -5}, "a number of records"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(client: Client, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        client.submit(task="test-echo", records=["a"], **wrong)


def test_a_table_has_typed_outputs_where_the_runner_declares_them(client: Client) -> None:
    vectors = client.submit(task="test-vector", records=["one", "two"])
    texts = client.submit(task="test-echo", records=["good", "bad"], params={"fail": "bad"})
    vectors.wait(60)
    texts.wait(60)
    table = vectors.to_arrow()
    assert table.schema.field("output").type == pa.list_(pa.float32(), 3)
    assert len(table["output"][0].as_py()) == 3
    found = texts.to_arrow().to_pydict()
    assert found["output"] == ["GOOD", None] and found["error_code"] == [None, "test_failure"]


def test_results_are_written_to_a_file(client: Client, tmp_path: Path) -> None:
    job = client.submit(task="test-echo", records=["x"])
    job.wait(60)
    job.write(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == '{"text": "x", "id": 0, "output": "X"}\n'
    with pytest.raises(UsageError, match="expected one of"):
        job.write(tmp_path / "out.docx")


def test_a_job_is_waited_for_until_the_timeout_cancelled_and_deleted(client: Client, tmp_path: Path) -> None:
    until = {"until": str(tmp_path / "go")}
    job = client.submit(task="test-wait", records=map(str, range(40)), params=until, chunk_size=4)
    with pytest.raises(WaitTimedOut, match="is still") as caught:
        job.wait(timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    assert {row.error.code for row in job.results() if row.error} == {"not_run"}
    with pytest.raises(UsageError, match="cancel it first"):
        job.delete()
    job.cancel()
    assert job.wait(60).status is JobStatus.CANCELLED
    job.delete()
    with pytest.raises(UnknownJob):
        job.refresh()


def test_what_failed_is_run_again(client: Client) -> None:
    job = client.submit(task="test-echo", records=["good", "bad"], params={"fail": "bad"})
    assert job.wait(60).counts.failed == 1
    assert job.retry() == 1
    assert job.wait(60).round == 1


def test_hundreds_of_jobs_from_several_threads_are_all_done(client: Client) -> None:
    done: list[JobHandle] = []

    def submit(thread: int) -> None:
        labels = {"many": str(thread)}
        jobs = [client.submit(task="test-echo", records=[f"{thread}-{n}"], labels=labels) for n in range(50)]
        done.extend(jobs)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {job.wait(120).status for job in done} == {JobStatus.COMPLETED}
    assert sorted(str(outputs(job)[0]) for job in done) == sorted(f"{t}-{n}" for t in range(4) for n in range(50))
    assert len(client.jobs(labels={"many": "2"})) == 50


def test_payloads_and_outputs_lie_where_a_program_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path, queue: Queue
) -> None:
    monkeypatch.setenv("HUGQUEUE_SHARED", str(shared))
    with Client(queue.server.url) as client:
        texts = [f"line {n} {'x' * 500}" for n in range(20)]
        options = {"task": "test-echo", "records": texts, "chunk_size": 10}
        job = client.submit(**options, store=str(shared / "store"), output=shared / "out")
        job.wait(60)
        assert outputs(job) == [text.upper() for text in texts]
        assert (shared / "out" / "_SUCCESS").exists()
        assert len(list((shared / "store" / job.id / "in").iterdir())) == 2
        with pytest.raises(UsageError, match="HUGQUEUE_SHARED"):
            client.submit(**options, output=tmp_path / "elsewhere")
        with pytest.raises(UsageError, match="already holds an output"):
            client.submit(**options, output=shared / "out")


def test_a_batch_file_says_its_task_itself(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    body = {"model": "nobody/nothing", "input": "x"}
    path.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}) + "\n")
    job = client.submit(records=path, format="openai", device="gpu")  # no worker has one
    assert (job.state.spec.task, job.state.spec.model) == ("embedding", "nobody/nothing")
    job.cancel()
    job.wait(60)
    with pytest.raises(JobFailed, match="was cancelled"):
        job.write(tmp_path / "responses.jsonl")
    job.write(tmp_path / "responses.jsonl", check=False)
    assert json.loads((tmp_path / "responses.jsonl").read_text())["custom_id"] == "a"
    with pytest.raises(UsageError, match="pass the paths of batch files"):
        client.submit(records=["x"], format="openai")
    with pytest.raises(UsageError, match="--task"):
        client.submit(records=["x"])


def test_a_data_frame_is_submitted_by_its_rows(client: Client) -> None:
    job = client.submit(task="test-echo", records=pd.DataFrame({"id": [4, 5], "body": ["x", "y"]}), column="body")
    job.wait(60, check=True)
    assert [(row.id, row.output) for row in job.results()] == [(4, "X"), (5, "Y")]


def test_a_failed_job_raises_where_its_results_are_counted_on(client: Client, tmp_path: Path) -> None:
    job = client.submit(task="test-load", records=["x"], params={"load_error": "no head"})
    assert job.wait(60).status is JobStatus.FAILED
    reads = (job.results, job.to_arrow, lambda: job.write(tmp_path / "out.jsonl"), lambda: job.wait(check=True))
    for read in (job.raise_for_status, *reads):
        with pytest.raises(JobFailed, match="no head") as caught:
            read()
        assert (caught.value.job_id, caught.value.code) == (job.id, "test_load")
    assert not (tmp_path / "out.jsonl").exists()
    assert [row.error and row.error.code for row in job.results(check=False)] == ["not_run"]
    assert job.to_arrow(check=False)["error_code"].to_pylist() == ["not_run"]


def test_a_submit_that_failed_for_want_of_a_worker_fails_again(tmp_path: Path) -> None:
    python, environ = python_without(("torch",), tmp_path, environment(tmp_path))
    code = (
        "from hugqueue import Client, UsageError\nclient = Client()\n"
        "for _ in range(2):\n"
        "    try: client.submit(task='fill-mask', records=['a [MASK]']).wait(20)\n"
        "    except UsageError as error: print('needs torch' in str(error))\n"
    )
    done = subprocess.run(
        [*python, "-c", code], check=True, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True\nTrue\n", done.stderr


def test_an_unavailable_redis_is_reported_at_once() -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        Client(f"redis://127.0.0.1:{free_port()}/0")


def test_without_a_queue_redis_and_worker_live_as_long_as_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = environment(tmp_path, HUGQUEUE_RENEW="0.3")
    for name in set(os.environ) - environ.keys():
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    home, said = Home(environ), list[str]()
    try:
        with Client(notify=said.append) as client:
            assert client.jobs() == []
            job = client.submit(task="test-echo", records=["x"])
            assert job.wait(60).status is JobStatus.COMPLETED and outputs(job) == ["X"]
        home.wait_until_empty()
        with Client() as client:
            assert outputs(client.job(job.id)) == ["X"]
        home.wait_until_empty()
    finally:
        home.end()


def test_ctrl_c_in_a_program_leaves_the_job_on_a_configured_queue(queue: Queue, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hugqueue import Client\n"
        f"job = Client().submit(task='test-wait', records=['x'], params={{'until': {str(tmp_path / 'go')!r}}})\n"
        "print(job.id, flush=True)\njob.wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=queue.environ, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout
    job = process.stdout.readline().strip()
    wait_until(lambda: queue.status(job)["status"] == "running", 60, "the job runs")
    process.send_signal(2)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert queue.status(job)["status"] == "running"
    (tmp_path / "go").touch()
    queue.run("wait", job)


def test_keywords_are_those_of_the_method_and_params_may_be_none(client: Client) -> None:
    with pytest.raises(TypeError, match="wait"):
        client.submit(task="test-echo", records=["a"], wait=True)  # type: ignore[call-arg]
    job = client.submit(task="test-echo", records=["a"], params=None)
    job.wait()
    assert outputs(job) == ["A"]
