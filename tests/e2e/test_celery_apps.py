"""Celery apps that do not import hugqueue submit jobs, wait for them, and go on with their results."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from celery import chain, chord

from tests.support.celery_apps import CELERY, CONTROL, OtherApp, control, running
from tests.support.cli_processes import Queue, running_queue
from tests.support.processes import DEMO_MODEL, ROOT, RedisServer, wait_until

#: A program that has nothing of hugqueue, though this Python has: five lines, and what it loaded.
FIVE_LINES = """
from celery import Celery
app = Celery(broker=URL, backend=URL)
app.conf.task_routes = {"hugqueue.*": {"queue": "hugqueue.control"}}
job = app.send_task("hugqueue.submit", kwargs={"task": "test-echo", "records": ["one", "two"]})
end = app.send_task("hugqueue.wait", args=[job.get(timeout=60)])
import json, sys
print(json.dumps([job.get(), end.get(timeout=60), sorted({"common", "hugqueue", "producer"} & sys.modules.keys())]))
"""


@pytest.fixture(scope="module")
def queue(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """A queue with a worker, and a process that serves tasks."""
    directory = tmp_path_factory.mktemp("queue")
    settings = {"HUGQUEUE_SHARED": str(shared), "HUGQUEUE_MODEL_ROOTS": str(DEMO_MODEL)}
    with running_queue(directory, **settings) as queue, control(queue.environ, directory):
        yield queue


@pytest.fixture
def app(queue: Queue) -> OtherApp:
    return OtherApp(queue.server.url)


def run_python(code: str, directory: Path, environ: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def unfinished(app: OtherApp) -> str:
    """Return a job that no worker takes."""
    return app.call("submit", task="test-echo", records=["a"], device="gpu")


def wait_for_waits(server: RedisServer, count: int) -> None:
    """Wait until that many tasks wait for jobs."""

    def look() -> bool:
        return sum(map(server.client.hlen, server.client.keys("hugqueue:control:waits:*"))) == count

    wait_until(look, 30, f"{count} tasks wait")


def test_an_app_of_five_lines_submits_a_job_and_gets_its_id_and_its_end(queue: Queue, tmp_path: Path) -> None:
    answer = run_python(FIVE_LINES.replace("URL", repr(queue.server.url)), tmp_path)
    job, end, imported = json.loads(answer)
    assert imported == []
    assert {**end, "refusals": {}} == {**queue.status(job), "output_location": None}
    assert (end["status"], end["counts"]["succeeded"]) == ("completed", 2)


def test_the_example_runs_in_a_chain_and_on_its_schedule(queue: Queue, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "celery_app.py", tmp_path)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"REDIS_URL": queue.server.url, "MODEL": str(DEMO_MODEL), "SECONDS": "1"}
    worker = [CELERY, "-A", "celery_app", "worker", "--beat", "--pool", "solo", "--loglevel", "info"]
    with running(worker, environ, tmp_path, "worker.log") as process:
        done = run_python("import runpy; runpy.run_path('celery_app.py', run_name='__main__')", tmp_path, environ)
        assert done == "['paris']\n"
        process.wait_for("'hourly completed: 2 records'")


def test_chains_and_chords_go_on_with_results_and_stop_at_a_failed_job(app: OtherApp) -> None:
    def job(*records: str, **options: object) -> object:
        return app.signature("submit", task="test-echo", records=records, **options)

    found = chain(job("a", "b"), app.signature("wait"), app.signature("results"))()
    assert found.get(timeout=60) == [{"text": "a", "id": 0, "output": "A"}, {"text": "b", "id": 1, "output": "B"}]
    # The body of a chord gets what the tasks of its header returned: here records for another job.
    body = app.signature("submit", task="test-echo", column="status")
    ends = chord([chain(job(text), app.signature("wait")) for text in "xyz"])(chain(body, app.signature("wait")))
    assert ends.get(timeout=60)["counts"]["succeeded"] == 3
    first = app.call("submit", task="test-echo", records=["a"], output_column="first")
    reader = app.signature("submit", task="test-echo", records=f"job:{first}", after=[first], column="first")
    rows = chain(reader, app.signature("wait"), app.signature("results"))().get(timeout=60)
    assert rows == [{"text": "a", "first": "A", "id": 0, "output": "A"}]
    failing = chain(job("a", max_errors="x"), app.signature("wait"))()
    with pytest.raises(ValueError, match="--max-errors 'x': expected a number"):
        failing.get(timeout=60)
    assert failing.parent.state == "FAILURE"


def test_a_wait_ends_with_an_error_unless_it_is_not_to_check(app: OtherApp, queue: Queue) -> None:
    job = unfinished(app)
    checked, unchecked = app.send("wait", job), app.send("wait", {"id": job}, check=False)
    wait_for_waits(queue.server, 2)
    with pytest.raises(ValueError, match=f"Job {job} is queued: send hugqueue.wait before hugqueue.results"):
        app.call("results", job)
    assert app.call("status", job)["status"] == "queued"
    assert app.call("cancel", job) == "cancelled"
    with pytest.raises(RuntimeError, match=f"Job {job} was cancelled"):
        checked.get(timeout=60)
    assert unchecked.get(timeout=60)["status"] == "cancelled"
    queue.run("delete", job)
    with pytest.raises(LookupError, match=f"There is no job '{job}'"):
        app.call("wait", job)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"records": ["a"], "task": "nope"}, "Unknown task 'nope'"),
        ({"records": ["a"], "tsak": "test-echo"}, "hugqueue.submit has no argument 'tsak'. Did you mean task?"),
        ({"records": ["a"], "task": 5}, "hugqueue.submit: task: expected `str | null`, got `int`, found 5"),
        ({"records": ["a"], "callback": {"args": []}}, "callback: object missing required field `task`"),
        ({"records": ["a"], "callback": {"task": "x", "subtask_type": "chain"}}, "is not a signature of Celery"),
        ({"records": []}, "records must be a list of records, or the path or URL"),
        ({}, "records must be a list of records"),
        ({"records": "/etc/passwd", "task": "test-echo", "format": "txt"}, "'/etc/passwd' is not under a shared"),
        ({"records": "/etc/*", "task": "test-echo"}, "is not under a shared location"),
        ({"records": "-", "task": "test-echo"}, "is not under a shared location"),
        ({"records": "http://127.0.0.1/a.txt", "task": "test-echo"}, "is not under a shared location"),
        ({"records": ["a"], "task": "test-echo", "output": "/tmp/a"}, "output='/tmp/a/' is not under"),
        ({"records": ["a"], "task": "test-echo", "store": "/tmp/a"}, "store='/tmp/a' is not under"),
        ({"records": ["a"], "task": "embedding", "params": {"ranges": "/tmp/a.npy"}}, "ranges='/tmp/a.npy' is not"),
    ],
)
def test_wrong_arguments_fail_the_task_with_an_error_that_every_app_has(
    app: OtherApp, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        app.call("submit", **arguments)
    assert message in str(caught.value)


def test_other_tasks_refuse_wrong_arguments_too(app: OtherApp) -> None:
    for name, arguments, message in (
        ("wait", {}, "hugqueue.wait: missing a required argument: 'job'."),
        ("wait", {"job": "@last"}, "expected the id of a job, twelve hexadecimal digits, found '@last'."),
        ("cancel", {"job": "0" * 12, "force": True}, "hugqueue.cancel: got an unexpected keyword argument 'force'."),
        ("results", {"job": "0" * 12, "limit": 0}, "limit: expected a number of results from 1 to 10,000, found 0."),
    ):
        with pytest.raises(ValueError) as caught:
            app.call(name, **arguments)
        assert message in str(caught.value)


def test_a_shared_file_is_read_and_workers_write_the_results_beside_it(
    app: OtherApp, queue: Queue, shared: Path, tmp_path: Path
) -> None:
    (shared / "in.txt").write_text("a\nb\n")
    (shared / "secret.txt").symlink_to("/etc/passwd")
    found = chain(
        app.signature("submit", str(shared / "in.txt"), task="test-echo", output=str(shared / "out")),
        app.signature("wait"),
    )().get(timeout=60)
    assert found["output_location"] == str(shared / "out")
    assert sorted(path.suffix for path in (shared / "out").iterdir()) == ["", ".json", ".parquet"]
    for link in ("secret.txt", "../shared/in.txt"):
        with pytest.raises(ValueError, match="is not under a shared location"):
            app.call("submit", str(shared / link), task="test-echo")


def test_the_same_task_id_is_one_job_and_one_callback(app: OtherApp, queue: Queue) -> None:
    client = queue.server.client
    callback = app.celery.signature("other.note", queue="queue-of-the-other-app")
    keywords = {"task": "test-echo", "records": ["a"], "device": "gpu", "callback": callback}
    first = app.celery.send_task("hugqueue.submit", kwargs=keywords, task_id="nightly-7").get(timeout=60)
    app.celery.backend.delete(b"celery-task-meta-nightly-7")
    again = app.celery.send_task("hugqueue.submit", kwargs=keywords, task_id="nightly-7")
    assert again.get(timeout=60) == first
    wait_until(lambda: not client.exists("hugqueue.control", "hugqueue:control:unacked"), 30, "all is processed")
    assert app.call("cancel", first) == "cancelled"
    wait_for_waits(queue.server, 0)
    wait_until(lambda: client.exists("queue-of-the-other-app"), 30, "the callback is sent")
    wait_until(lambda: not client.exists("hugqueue.control", "hugqueue:control:unacked"), 30, "all is processed")
    assert client.llen("queue-of-the-other-app") == 1


def test_waiting_tasks_survive_the_death_of_everything_and_continue_once(
    server: RedisServer, environ: dict[str, str], tmp_path: Path
) -> None:
    app, others = OtherApp(server.url), "queue-of-the-other-app"
    callback = app.celery.signature("other.note", queue=others)
    with control(environ, tmp_path, "first.log") as first:
        jobs = [app.call("submit", task="test-echo", records=["a"], callback=callback) for _ in range(3)]
        waits = [app.send("wait", job, check=False) for job in jobs * 10]
        wait_for_waits(server, 33)
        first.kill()
    server.kill()
    with running(CONTROL, environ, tmp_path, "second.log") as second, ExitStack() as stack:
        second.wait_for("Waiting for it.")
        server.start()
        stack.enter_context(control(environ, tmp_path, "third.log"))
        second.wait_for("serving tasks")
        for job in jobs:
            assert app.call("cancel", job) == "cancelled"
        assert {wait.get(timeout=60)["status"] for wait in waits} == {"cancelled"}
        wait_until(lambda: not server.client.exists("hugqueue:control:waited"), 30, "nothing is waited for")
        wait_until(lambda: server.client.llen(others) >= 3, 30, "the callbacks are sent")
    messages = [json.loads(message) for message in server.client.lrange(others, 0, -1)]
    assert {message["headers"]["task"] for message in messages} == {"other.note"}
    ended = [json.loads(base64.b64decode(message["body"]))[0][0]["id"] for message in messages]
    assert sorted(ended) == sorted(jobs)


def test_a_message_that_is_not_one_harms_nobody(app: OtherApp, queue: Queue) -> None:
    queue.server.client.lpush("hugqueue.control", b"\xff", b"{}", json.dumps({"headers": {"task": 5}}))
    app.celery.send_task("hugqueue.unknown", queue="hugqueue.control")
    assert app.call("submit", task="test-echo", records=["a"])


def test_a_waiting_task_that_cannot_be_sent_holds_up_no_other(app: OtherApp, queue: Queue) -> None:
    client = queue.server.client
    for number, options in enumerate(({"serializer": "nope"}, {"countdown": "soon"}, {"queue": 5}, {"link": 5})):
        forged = json.dumps({"task": "hugqueue.wait", "args": ["0" * 12], "kwargs": {}, "options": options})
        client.hset(f"hugqueue:control:waits:{number:012}", "id", forged)
        client.sadd("hugqueue:control:waited", f"{number:012}")
    job = unfinished(app)
    wait = app.send("wait", job, check=False)
    assert app.call("cancel", job) == "cancelled"
    assert wait.get(timeout=60)["status"] == "cancelled"
    wait_until(lambda: not client.exists("hugqueue:control:waited"), 30, "nothing is waited for")


def test_another_broker_and_another_place_for_results_can_be_set(queue: Queue, tmp_path: Path) -> None:
    base = queue.server.url.removesuffix("/0")
    elsewhere = {"HUGQUEUE_CONTROL_BROKER_URL": f"{base}/1", "HUGQUEUE_CONTROL_RESULT_BACKEND": f"{base}/2"}
    with control(queue.environ | elsewhere, tmp_path) as process:
        other = OtherApp(f"{base}/1", f"{base}/2")
        job = other.call("submit", task="test-echo", records=["a"])
        assert other.call("wait", job)["status"] == "completed"
        assert redis.Redis.from_url(f"{base}/2").dbsize()
        assert process.stop() == 0
