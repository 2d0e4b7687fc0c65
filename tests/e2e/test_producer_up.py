"""`producer up`: Redis, workers and Flower, what Flower shows and what it never shows, and that nothing stays."""

import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from producer.cli.all_in_one import JOBS_PAGE
from tests.support.embedded_processes import Home
from tests.support.processes import DEMO_MODEL, RedisServer, Shell, environment, free_port, wait_until
from workers.celery_worker.job_events import HOME
from workers.celery_worker.job_rows import ROW_NAME

PASSWORD = "swordfish-of-redis"
RECORD = "The capital of France is [MASK]."


class Up:
    """A running `producer up`."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        self.port = free_port()
        self.home = Home(shell.environ)
        self.log = shell.directory / f"up-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = shell.popen("up", "--device", "cpu", *arguments, stdout=log, stderr=log)

    def wait_for(self, *words: str) -> str:
        """Return all it said, once that holds all these words."""
        wait_until(lambda: all(word in self.said() for word in words), 60, f"{words} in {self.log}")
        return self.said()

    def said(self) -> str:
        return self.log.read_text()

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def end(self) -> None:
        """SIGKILL of everything."""
        self.process.kill()
        self.process.wait()
        self.home.end()


@pytest.fixture
def start_up() -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*arguments: Any) -> Up:
        started.append(Up(*arguments))
        return started[-1]

    yield start
    for up in started:
        up.end()


class Flower:
    """The pages of a Flower that watches a queue with a password, where a job has run."""

    def __init__(self, shell: Shell, port: int) -> None:
        self.shell = shell
        self.job = ""
        self._base = f"http://127.0.0.1:{port}"

    def get(self, path: str, data: bytes | None = None) -> str:
        with urllib.request.urlopen(self._base + path, data, timeout=20) as answer:
            return str(answer.read().decode())

    def status(self, path: str) -> int:
        """Return the status that an action gets."""
        try:
            self.get(path, b"")
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    def worker(self) -> str:
        return str(json.loads(self.shell.run("workers", "--json").stdout)[0]["name"])

    def tasks(self, job: str) -> list[dict[str, Any]]:
        """Return what the table of tasks shows of the job's tickets."""
        query = {"draw": 1, "start": 0, "length": 100, "search[value]": "", "order[0][column]": 0}
        query |= {"order[0][dir]": "asc", "columns[0][data]": "name"}
        try:
            table = json.loads(self.get(f"/tasks/datatable?{urllib.parse.urlencode(query)}"))
        except urllib.error.HTTPError as error:
            pytest.fail(f"{error.code}: {error.read().decode()[:500]}")
        return [row for row in table["data"] if job in str(row["args"]) and row["name"] != ROW_NAME]


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    directory = tmp_path_factory.mktemp("flower")
    server = RedisServer(directory / "redis", "--requirepass", PASSWORD).start()
    address = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
    environ = environment(directory, address, HUGQUEUE_MODEL_ROOTS=str(DEMO_MODEL), FLOWER_UNAUTHENTICATED_API="1")
    shell = Shell(environ, directory)
    port = free_port()
    up = Up(shell, "--port", str(port))
    try:
        up.wait_for("worker  ", f"Flower   http://127.0.0.1:{port}{JOBS_PAGE}")
        pages = Flower(shell, port)
        # Flower answers before it listens to events; it knows a worker by its first one.
        wait_until(lambda: json.loads(pages.get("/workers?json=1"))["data"], 60, "Flower listens")
        (directory / "in.txt").write_text(f"{RECORD}\n" * 300)
        pages.job = shell.submit("--task", "fill-mask", "in.txt", "-m", str(DEMO_MODEL), "--name", "my capitals")
        shell.run("wait", pages.job)
        assert PASSWORD not in up.said()
        yield pages
    finally:
        up.end()
        server.kill()


def finished(flower: Flower, job: str, count: int) -> list[dict[str, Any]]:
    """Return the turns of the job that Flower knows the results of, once there are `count`."""

    def look() -> list[dict[str, Any]] | None:
        done = [row for row in flower.tasks(job) if row["state"] == "SUCCESS" and "chunk" in str(row["result"])]
        return done if len(done) >= count else None

    return wait_until(look, 30, f"Flower shows {count} turns")


def test_tasks_have_readable_names_arguments_and_results(flower: Flower) -> None:
    rows = finished(flower, flower.job, 2)
    assert {row["name"] for row in rows} == {"hugqueue.fill-mask"}
    for row in rows:
        assert row["args"].startswith(f"job {flower.job} 'my capitals' · ") and "demo-fill-mask" in row["args"]
    results = sorted(row["result"].strip("'") for row in rows)
    assert re.fullmatch(r"chunk 1 of 2: 256 done, [\d,]+ records/s", results[0])
    assert re.fullmatch(r"chunk 2 of 2: 44 done, [\d,]+ records/s", results[1])
    page = flower.get("/tasks")
    assert page.index(">args<") < page.index(">Result<") < page.index(">State<")


def test_a_failed_ticket_is_red_with_its_reason_and_its_time(flower: Flower) -> None:
    (flower.shell.directory / "bad.txt").write_text("x\n" * 8)
    fatal = flower.shell.directory / "fatal"
    fatal.touch()
    slow = ["-p", "load_seconds=1", "--chunk-size", "8"]
    cases = {
        "job failed: test_load: asked for": ["--task", "test-load", "bad.txt", "-p", "load_error=asked for", *slow],
        "to be retried: asked to have trouble": [
            "--task",
            "test-load",
            "bad.txt",
            "-p",
            f"load_trouble={fatal}",
            *slow,
        ],
        "job failed: too_many_errors: 8 records failed": [
            *("--task", "test-wait", "bad.txt", "-p", "seconds=1", "-p", "fail=x", "-p", f"fail_while={fatal}"),
            *("--max-errors", "2"),
        ],
    }
    for reason, arguments in cases.items():
        job = flower.shell.submit(*arguments)

        def failed(job: str = job) -> list[dict[str, Any]]:
            return [row for row in flower.tasks(job) if row["state"] == "FAILURE"]

        row = wait_until(failed, 30, f"Flower shows a failure: {reason}")[0]
        assert row["result"].startswith(reason), row
        assert row["runtime"] >= 1.0
        page = flower.get(f"/task/{row['uuid']}")
        assert reason in page and "File &quot;" not in page and "raise TicketFailed" not in page
        flower.shell.run("cancel", job, status=None)
    assert 'type="task-failed"' in flower.get("/metrics")


def test_the_page_that_is_announced_is_that_of_the_jobs(flower: Flower) -> None:
    assert f"/tasks?name={ROW_NAME}" == JOBS_PAGE
    assert 'id="tasks-table"' in flower.get(JOBS_PAGE)


def test_the_run_time_shown_is_that_of_the_ticket(flower: Flower) -> None:
    (flower.shell.directory / "slow.txt").write_text("x\n")
    job = flower.shell.submit("--task", "test-wait", "slow.txt", "-p", "seconds=1.5")
    [row] = finished(flower, job, 1)
    assert 1.5 <= row["runtime"] < 30


def test_no_page_shows_a_password_or_a_record(flower: Flower) -> None:
    task = finished(flower, flower.job, 1)[0]["uuid"]
    paths = ["/", "/workers", f"/worker/{flower.worker()}", "/tasks", f"/task/{task}", "/broker"]
    pages = {path: flower.get(path) for path in paths}
    for path, page in pages.items():
        assert PASSWORD not in page, path
        assert "capital of France" not in page, path
    assert "redis://:**" in pages["/broker"]
    assert f"job {flower.job}" in pages[f"/task/{task}"]


def test_a_worker_stays_online_during_a_long_chunk(flower: Flower) -> None:
    go = flower.shell.directory / "go"
    started = flower.shell.directory / "started"
    (flower.shell.directory / "one.txt").write_text("x\n")
    params = ["-p", f"until={go}", "-p", f"started={started}"]
    job = flower.shell.submit("--task", "test-wait", "one.txt", *params)
    wait_until(started.exists, 30, "the chunk runs")
    begun = time.time()

    def worker() -> dict[str, Any]:
        [row] = [row for row in json.loads(flower.get("/workers?json=1"))["data"] if row["hostname"] != HOME]
        return dict(row)

    wait_until(lambda: sum(beat > begun for beat in worker()["heartbeats"]) >= 2, 30, "two heartbeats in the chunk")
    assert worker()["status"] is True and worker()["active"] == 1
    assert [row["state"] for row in flower.tasks(job)] == ["STARTED"]
    go.touch()
    flower.shell.run("wait", job)


@pytest.mark.parametrize(
    "action",
    [
        "/api/worker/shutdown/{worker}",
        "/api/worker/pool/shrink/{worker}",
        "/api/worker/queue/cancel-consumer/{worker}?queue=any",
        "/api/task/revoke/{task}?terminate=true",
        "/api/task/send-task/hugqueue.fill-mask",
        "/api/task/apply/hugqueue.fill-mask",
    ],
)
def test_flower_can_look_and_not_act(flower: Flower, action: str) -> None:
    task = finished(flower, flower.job, 1)[0]["uuid"]
    assert flower.status(action.format(worker=flower.worker(), task=task)) in (401, 403, 405)
    assert flower.worker()


def test_flower_listens_on_localhost_only(flower: Flower) -> None:
    port = int(flower._base.rpartition(":")[2])
    addresses = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


# Starting and stopping


def test_up_starts_an_embedded_queue_again_that_is_killed(start_up: Callable[..., Up], tmp_path: Path) -> None:
    up = start_up(Shell(environment(tmp_path), tmp_path), "--no-flower")
    up.wait_for("worker   ")
    up.home.daemon().kill()
    up.wait_for("The embedded Redis was killed; starting it again.")
    wait_until(lambda: up.said().count("worker   ") == 2, 60, "another worker is ready")
    assert up.stop(signal.SIGINT) == 0


def test_up_ends_with_the_reason_where_its_worker_cannot_start(start_up: Callable[..., Up], tmp_path: Path) -> None:
    up = start_up(Shell(environment(tmp_path), tmp_path), "--no-flower", "--preload", "test-model=no/such-model")
    assert up.process.wait(90) == 1
    assert "The embedded worker could not start" in up.said() and "no/such-model" in up.said()


def test_up_replaces_a_kept_worker_that_has_other_settings(start_up: Callable[..., Up], tmp_path: Path) -> None:
    shell = Shell(environment(tmp_path), tmp_path)
    (tmp_path / "in.txt").write_text("x\n")
    shell.run("submit", "--task", "test-echo", "in.txt", "--keep-alive", "5m")
    up = start_up(shell, "--no-flower", "--preload", f"fill-mask={DEMO_MODEL}")
    assert "already running" not in up.wait_for("worker   cpu-")
    [worker] = json.loads(shell.run("workers", "--json").stdout)
    assert [model["model"] for model in worker["models"]] == [str(DEMO_MODEL)]
    assert up.stop(signal.SIGINT) == 0
    up.home.wait_until_empty()


def test_a_killed_up_leaves_no_process_of_an_embedded_queue(start_up: Callable[..., Up], tmp_path: Path) -> None:
    port = free_port()
    up = start_up(Shell(environment(tmp_path), tmp_path), "--port", str(port))
    said = up.wait_for("Redis    redis+socket://", "worker   cpu-", f"Flower   http://127.0.0.1:{port}")
    assert "Ctrl-C stops everything." in said
    assert up.home.processes("celery") and up.home.processes("valkey-server")
    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    up.home.wait_until_empty()


def test_ctrl_c_stops_the_workers_and_not_a_configured_redis(
    start_up: Callable[..., Up], shell: Shell, server: RedisServer
) -> None:
    up = start_up(shell, "--no-flower")
    said = up.wait_for(f"Redis    {server.url}", "worker   cpu-")
    assert "Flower" not in said
    assert up.stop(signal.SIGINT) == 0
    up.home.wait_until_empty()
    assert server.answers()


def test_a_part_that_ends_stops_everything(start_up: Callable[..., Up], shell: Shell) -> None:
    up = start_up(shell, "--no-flower", "--preload", "test-model=no/such-model")
    assert up.process.wait(60) == 1
    assert "The workers exited with status 1. Stopping everything." in up.said()
    up.home.wait_until_empty()


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    shell = Shell(environment(tmp_path), tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done: subprocess.CompletedProcess[str] = shell.run("up", "--port", str(taken.getsockname()[1]), status=2)
    assert "Address already in use. Choose another port with --port." in done.stderr
    assert not (tmp_path / "hugqueue").exists()
