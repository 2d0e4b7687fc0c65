"""`workers start`: who gets which GPU, and that a stop is heard at any time. A script stands for nvidia-smi."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from common.gpus import Gpu
from common.queue.heartbeats import Heartbeat, send_heartbeat
from common.redis.keys import device_claim
from common.settings import Settings
from tests.support.processes import ROOT, RedisServer, Shell, Workers, wait_until
from workers.supervisor import CLAIM_MS, Supervisor

StartWorkers = Callable[..., Workers]


@pytest.fixture
def gpus(tmp_path: Path) -> dict[str, str]:
    """An environment in which the machine has two GPUs."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 0, GPU-a, First\necho 1, GPU-b, Second\n")
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}", "HUGQUEUE_MODELS_URL": str(tmp_path / "models")}


def owners(server: RedisServer) -> list[bytes | None]:
    return [server.client.get(device_claim(uuid)) for uuid in ("GPU-a", "GPU-b")]


def test_a_train_worker_claims_all_its_gpus_and_waits_for_a_claimed_one(
    start_workers: StartWorkers, server: RedisServer, gpus: dict[str, str]
) -> None:
    first = start_workers("--train", "--device", "cuda:0,cuda:1", **gpus)
    assert owners(server)[0] is not None
    assert owners(server)[0] == owners(server)[1]
    assert first.celery().environ()["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    second = start_workers("--train", "--device", "cuda:1", ready=False, **gpus)
    wait_until(lambda: "other workers have claimed its GPUs" in second.text(), 30)
    assert first.stop() == 0
    assert second.celery().environ()["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert owners(server)[0] is None, "given back"


def test_a_train_worker_for_one_gpu_takes_one_that_is_free(
    start_workers: StartWorkers, server: RedisServer, gpus: dict[str, str]
) -> None:
    server.client.set(device_claim("GPU-a"), "another machine/1")
    workers = start_workers("--train", "--device", "cuda:0,cuda:1", "--gpus", "1", **gpus)
    assert workers.celery().environ()["CUDA_VISIBLE_DEVICES"] == "GPU-b"


def test_workers_for_several_gpus_share_the_cores(monkeypatch: pytest.MonkeyPatch, server: RedisServer) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setattr("workers.supervisor.available_cpus", lambda: 16)
    devices = [Gpu(number, f"GPU-{number}", "a GPU") for number in range(4)]

    def threads(devices: list[Gpu]) -> set[str | None]:
        made = Supervisor(Settings(), devices, server.client, log_level="info")
        return {worker.environ.get("RAYON_NUM_THREADS") for worker in made._workers}

    assert threads(devices) == {"4"}
    assert threads(devices[:1]) == {None}  # the library's own default: all cores


def check(environ: dict[str, str]) -> tuple[int, str]:
    """Return exit status and output of `workers check`."""
    command = [sys.executable, "-P", "-m", "workers.cli", "check"]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_check_tells_whether_a_worker_of_this_machine_is_ready(
    start_workers: StartWorkers, server: RedisServer, environ: dict[str, str]
) -> None:
    send_heartbeat(server.client, Heartbeat("cpu-1@elsewhere", "cpu", "", ("any",), 1, 1, "elsewhere", 0.0))
    host = socket.gethostname()
    assert check(environ) == (1, f"Error: No worker is ready on {host}; 0 are starting or stopping.\n")
    workers = start_workers()
    status, text = check(environ)
    assert workers.process
    assert (status, text) == (0, f"cpu-{workers.process.pid}@{host}: ready\n")
    server.kill()
    status, text = check(environ)
    assert status == 1 and "cannot be reached" in text


def test_a_worker_that_is_still_preloading_is_not_ready_and_stops_at_once(
    start_workers: StartWorkers, environ: dict[str, str]
) -> None:
    workers = start_workers("--preload", "test-load", ready=False, LOAD_SECONDS="600")
    wait_until(lambda: "loading test-load" in workers.text(), 30)
    assert check(environ)[0] == 1
    device = workers.device()
    assert workers.stop(10) == 0
    assert not device.is_running()


def test_a_preload_that_is_not_there_is_refused_before_anything_starts(environ: dict[str, str], tmp_path: Path) -> None:
    workers = Workers(environ, tmp_path / "log", "--preload", "fill-mask=./nowhere").start()
    assert workers.process
    assert workers.process.wait(20) == 2
    assert "--preload ./nowhere: there is no such directory" in workers.text()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_installed_is_refused_before_anything_starts(
    environ: dict[str, str], tmp_path: Path
) -> None:
    workers = Workers(environ, tmp_path / "log", "--engine", "vllm").start()
    assert workers.process
    assert workers.process.wait(20) == 2
    assert "--engine vllm needs vLLM" in workers.text()
    assert "[worker,vllm]" in workers.text()


def test_only_celery_itself_makes_the_app_of_the_environment(environ: dict[str, str]) -> None:
    code = "import common.broker.app; print(common.broker.app.make_app.__name__)"
    wrong = environ | {"HUGQUEUE_LEASE": "long"}
    done = subprocess.run([sys.executable, "-c", code], env=wrong, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "make_app"


@pytest.mark.faults
def test_a_worker_that_finishes_its_work_keeps_its_gpu_until_it_ends(
    start_workers: StartWorkers, shell: Shell, server: RedisServer, gpus: dict[str, str], tmp_path: Path
) -> None:
    go, started = tmp_path / "go", tmp_path / "started"
    (tmp_path / "in.txt").write_text("a\n")
    workers = start_workers("--device", "cuda:0", HUGQUEUE_GRACE="100", **gpus)
    job = shell.submit("--task", "test-wait", str(tmp_path / "in.txt"), "-p", f"until={go}", "-p", f"started={started}")
    wait_until(started.exists)
    assert workers.process
    workers.process.terminate()
    end = time.monotonic() + 1.2 * CLAIM_MS / 1000
    wait_until(lambda: time.monotonic() > end or owners(server)[0] is None)
    assert owners(server)[0] is not None
    go.touch()
    assert workers.process.wait(30) == 0
    assert owners(server)[0] is None
    assert shell.status(job)["status"] == "completed"
