"""The containers for real: built, started, used, scaled and stopped. Needs a container engine and minutes.

The first test that needs the images builds them; each step is waited for by polling.
"""

import base64
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = "/models/demo-fill-mask"
OURS = re.compile(r"(HUGQUEUE|CELERY|REDIS|FLOWER|HF|WORKER|TORCH|COMPOSE)_")

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, seconds: float = 120.0) -> T:
    """Return the first answer of `condition` that is true."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"{seconds:.0f} s have passed and still not: {what}"
        time.sleep(0.5)
    return answer


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its status."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=1500, **options)


def compose_command() -> list[str]:
    """Return what the command is called here, or skip."""
    if not shutil.which("docker") or run("docker", "info").returncode:
        pytest.skip("no container engine answers")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not run(*command, "version").returncode:
            return command
    pytest.skip("there is an engine, but no docker compose")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Stack:
    """A compose project of its own: its name, ports, passwords and volumes are nobody else's."""

    def __init__(self, command: list[str], no_settings: Path) -> None:
        self.redis_port, self.flower_port = free_port(), free_port()
        self.password, self.login = secrets.token_hex(16), f"tester:{secrets.token_hex(8)}"
        self.redis_url = f"redis://:{self.password}@127.0.0.1:{self.redis_port}/0"
        self.clean = {name: value for name, value in os.environ.items() if not OURS.match(name)}
        self.environ = self.clean | {
            "DOCKER_BUILDKIT": "1",
            "REDIS_PASSWORD": self.password,
            "FLOWER_BASIC_AUTH": self.login,
            "REDIS_PORT": str(self.redis_port),
            "FLOWER_PORT": str(self.flower_port),
            "OMP_NUM_THREADS": "1",
        }
        self.project = f"hugqueue-test-{os.getpid()}"
        # The .env file that somebody may have here must not decide what the test sees.
        self._command = [*command, "-p", self.project, "--env-file", str(no_settings)]

    def compose(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return run(*self._command, *arguments, **{"cwd": ROOT, "env": self.environ} | options)

    def must(self, *arguments: str, **options: Any) -> str:
        """Run a compose command that has to succeed; return what it printed."""
        done = self.compose(*arguments, **options)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        return self.must("ps", "--quiet", service).split()

    def producer(self, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the producer of this checkout on the host, against the Redis in its container."""
        environ = self.clean | {"REDIS_URL": url or self.redis_url, "PYTHONPATH": str(ROOT)}
        return run(sys.executable, "-m", "producer.cli", *arguments, cwd=ROOT, env=environ)

    def workers(self) -> list[dict[str, Any]]:
        """Return the heartbeats of the workers that are ready."""
        listed = self.producer("workers", "--json")
        assert listed.returncode == 0, listed.stderr
        return [worker for worker in json.loads(listed.stdout) if worker["state"] == "ready"]

    def flower(self, path: str, login: str | None = None, method: str = "GET") -> tuple[int, bytes]:
        """Return status and body of Flower's answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.flower_port}{path}", method=method)
        if login:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read()
        except OSError:
            return 0, b""  # not up yet


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A project that is built, but has nothing running yet; whatever runs at the end is taken away."""
    no_settings = tmp_path_factory.mktemp("compose") / "empty.env"
    no_settings.touch()
    stack = Stack(compose_command(), no_settings)
    try:
        yield stack
    finally:
        stack.compose("--profile", "tools", "down", "--volumes", "--timeout", "10")


@pytest.fixture(scope="module")
def running(stack: Stack) -> Stack:
    """Redis, one CPU worker that is ready, and Flower."""
    stack.must("--profile", "tools", "build", "worker-cpu", "flower", "producer")
    stack.must("up", "--detach")
    wait_until(lambda: stack.flower("/healthcheck")[0] == 200, "Flower answers")
    wait_until(stack.workers, "a worker is ready")
    return stack


@pytest.mark.parametrize("secret", ["REDIS_PASSWORD", "FLOWER_BASIC_AUTH"])
def test_there_is_no_default_for_a_password(stack: Stack, secret: str) -> None:
    environ = {name: value for name, value in stack.environ.items() if name != secret}
    done = stack.compose("config", "--quiet", env=environ)
    assert done.returncode != 0
    assert f"set {secret} in .env" in done.stderr


def test_up_starts_no_gpu_worker_and_no_producer(running: Stack) -> None:
    listing = ["ps", "--filter", f"label=com.docker.compose.project={running.project}"]
    services = run("docker", *listing, "--format", '{{.Label "com.docker.compose.service"}}').stdout.split()
    assert sorted(services) == ["flower", "redis", "worker-cpu"]


def test_a_job_from_the_host_is_done_in_a_container(running: Stack) -> None:
    done = running.producer("submit", "--task", "fill-mask", "examples/capitals.txt", "--model", MODEL, "--wait")
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    lines = [line for line in (ROOT / "examples/capitals.txt").read_text("utf-8").splitlines() if line.strip()]
    assert [outcome["text"] for outcome in outcomes] == lines
    france = next(outcome for outcome in outcomes if "France" in outcome["text"])
    assert france["output"][0]["token_str"] == "paris"


def test_the_producer_container_takes_records_from_stdin(running: Stack) -> None:
    arguments = ["run", "--rm", "-T", "producer", "submit", "--task", "fill-mask", "-", "--model", MODEL, "--wait"]
    answer = running.must("--profile", "tools", *arguments, input="The capital of France is [MASK].\n")
    assert json.loads(answer)["output"][0]["token_str"] == "paris"


def test_the_producer_image_carries_no_torch(running: Stack) -> None:
    arguments = ["run", "--rm", "-T", "--entrypoint", "python", "producer", "-c", "import torch"]
    done = running.compose("--profile", "tools", *arguments)
    assert "No module named 'torch'" in done.stderr + done.stdout


def test_flower_shows_the_tasks_to_whoever_has_the_password(running: Stack) -> None:
    sent = running.producer("submit", "--task", "fill-mask", "examples/capitals.txt", "--model", MODEL)
    assert sent.returncode == 0, sent.stderr

    def succeeded() -> list[dict[str, Any]]:
        status, body = running.flower("/api/tasks", running.login)
        tasks = json.loads(body).values() if status == 200 else ()
        return [task for task in tasks if task["state"] == "SUCCESS" and sent.stdout.strip() in task["args"]]

    shown = wait_until(succeeded, "Flower shows a succeeded ticket of the job, or the job")
    assert {task["name"] for task in shown} <= {"hugqueue.fill-mask", "hugqueue.job"}


def test_flower_shows_nothing_without_the_password(running: Stack) -> None:
    for login in (None, "tester:wrong"):
        assert running.flower("/tasks", login)[0] == 401
        assert running.flower("/api/tasks", login)[0] == 401


def test_flower_stops_no_worker(running: Stack) -> None:
    name = running.workers()[0]["name"]
    assert running.flower(f"/api/worker/shutdown/{name}", running.login, "POST")[0] == 403


def test_redis_refuses_whoever_has_no_password(running: Stack) -> None:
    done = running.producer("jobs", url=f"redis://127.0.0.1:{running.redis_port}/0")
    assert done.returncode == 1
    assert "refuses" in done.stderr


@pytest.mark.parametrize("service", ["redis", "worker-cpu", "flower"])
def test_a_container_has_no_rights_it_does_not_need(running: Stack, service: str) -> None:
    report = "id -u; grep -E '^(CapBnd|NoNewPrivs)' /proc/1/status; grep -E '^[^ ]+ / ' /proc/mounts"
    user, capabilities, privileges, root = running.must("exec", "-T", service, "sh", "-c", report).splitlines()
    assert int(user) != 0
    assert int(capabilities.split()[1], 16) == 0
    assert privileges.split()[1] == "1"
    assert root.split()[3].startswith("ro")


@pytest.mark.parametrize("service", ["redis", "flower"])
def test_a_port_is_published_on_loopback_only(running: Stack, service: str) -> None:
    (container,) = running.containers(service)
    ports = json.loads(run("docker", "inspect", container).stdout)[0]["HostConfig"]["PortBindings"]
    assert {binding["HostIp"] for bindings in ports.values() for binding in bindings} == {"127.0.0.1"}


def test_the_worker_may_write_to_the_model_cache_alone(running: Stack) -> None:
    running.must("exec", "-T", "worker-cpu", "sh", "-c", 'touch "$HF_HOME/trial" && rm "$HF_HOME/trial"')
    assert running.compose("exec", "-T", "worker-cpu", "touch", f"{MODEL}/trial").returncode != 0


@pytest.mark.parametrize("service", ["redis", "worker-cpu", "flower"])
def test_every_service_becomes_healthy(running: Stack, service: str) -> None:
    (container,) = running.containers(service)
    health = ["docker", "inspect", "--format", "{{.State.Health.Status}}", container]
    wait_until(lambda: run(*health).stdout.strip() == "healthy", f"{service} is healthy")


def test_records_outlive_a_new_redis_container(running: Stack) -> None:
    sent = running.producer("submit", "--task", "fill-mask", "examples/capitals.txt", "--model", MODEL, "--wait")
    assert sent.returncode == 0, sent.stderr
    (job, *_) = json.loads(running.producer("jobs", "--json").stdout)
    running.must("up", "--detach", "--force-recreate", "--no-deps", "redis")
    wait_until(lambda: running.producer("jobs").returncode == 0, "Redis is back")
    assert running.producer("results", job["id"]).stdout == sent.stdout


def test_a_second_worker_shares_the_work(running: Stack, tmp_path: Path) -> None:
    running.must("up", "--detach", "--scale", "worker-cpu=2", "worker-cpu")
    wait_until(lambda: len(running.workers()) == 2, "two workers are ready")
    before = {worker["name"]: worker["records_done"] for worker in running.workers()}
    lines = tmp_path / "lines.txt"
    lines.write_text("The capital of France is [MASK].\n" * 400)
    done = running.producer(
        "submit", "--task", "fill-mask", str(lines), "--model", MODEL, "--chunk-size", "4", "--wait"
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 400

    def shared() -> bool:
        return all(worker["records_done"] > before[worker["name"]] for worker in running.workers())

    wait_until(shared, "each of the two has done some", 30.0)


def test_a_worker_told_to_stop_ends_by_itself(running: Stack) -> None:
    (container, *_) = running.containers("worker-cpu")
    running.must("stop", "worker-cpu")
    status = run("docker", "inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip()
    assert status == "0"
    assert running.workers() == []
