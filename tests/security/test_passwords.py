"""The password of Redis: nobody shows it, whether it is right, wrong, or the host is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.flower_process import flower, get
from tests.support.processes import RedisServer, Shell, Workers, environment, free_port, wait_until

PASSWORD = "s3cret-of-a-test"
COMMANDS = [("jobs",), ("workers",), ("submit", "--task", "test-echo", "a.txt"), ("status", "0123456789ab")]
PAGES = ["/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length", "/metrics"]


@pytest.fixture
def locked(server: RedisServer) -> RedisServer:
    server.client.config_set("requirepass", PASSWORD)
    return server


def everything_under(directory: Path) -> str:
    """The text of all logs."""
    return "\n".join(file.read_text(errors="replace") for file in directory.rglob("*.log"))


def test_the_right_password_is_in_no_output_no_log_and_no_page(locked: RedisServer, tmp_path: Path):
    environ = environment(tmp_path, f"redis://:{PASSWORD}@127.0.0.1:{locked.port}/0")
    (tmp_path / "a.txt").write_text("a\n")
    workers = Workers(environ, tmp_path / "workers.log", "--log-level", "debug").start()
    shell = Shell(environ, tmp_path)
    try:
        with flower(environ, tmp_path / "flower.log", "--logging=debug") as address:
            said = [shell.run("submit", "--task", "test-echo", "a.txt", "--wait")]
            said += [shell.run(*command, status=None) for command in COMMANDS]

            def inspected() -> str:
                text = get(f"{address}/api/workers?refresh=1")
                return text if "broker_url" in text else ""  # `{}` while the worker has not answered

            api = wait_until(inspected, 30, "Flower asks the worker")
            [name] = [name for name in api.split('"') if name.startswith("cpu-") and "@" in name][:1]
            pages = [api, *(get(address + page) for page in [*PAGES, f"/worker/{name}"])]
    finally:
        workers.kill()
    assert all(pages)
    assert PASSWORD not in "".join(pages)
    assert PASSWORD not in "".join(done.stdout + done.stderr for done in said)
    logs = everything_under(tmp_path)
    assert "Connected to redis://" in logs
    assert PASSWORD not in logs


def test_a_missing_password_is_reported_as_such(locked: RedisServer, tmp_path: Path):
    shell = Shell(environment(tmp_path, f"redis://127.0.0.1:{locked.port}/0"), tmp_path)
    assert "requires a password" in shell.run("jobs", status=1).stderr


def test_tls_to_a_plain_server_is_reported_as_such(server: RedisServer, tmp_path: Path):
    shell = Shell(environment(tmp_path, f"rediss://127.0.0.1:{server.port}/0"), tmp_path)
    assert "does not use TLS" in shell.run("jobs", status=1).stderr


def test_the_scheme_of_an_address_may_be_written_in_capitals(server: RedisServer, tmp_path: Path):
    shell = Shell(environment(tmp_path, f"REDIS://127.0.0.1:{server.port}/0"), tmp_path)
    shell.run("jobs")


def test_no_process_shows_the_password_in_its_command_line(locked: RedisServer, tmp_path: Path):
    environ = environment(tmp_path, f"redis://:{PASSWORD}@127.0.0.1:{locked.port}/0")
    workers = Workers(environ, tmp_path / "workers.log").start()
    try:
        device = workers.device()
        lines = [" ".join(process.cmdline()) for process in workers.processes()]
        assert len(lines) == 3
        assert PASSWORD not in "".join(lines)
        assert PASSWORD not in "".join(device.environ().values())
    finally:
        workers.kill()


@pytest.mark.parametrize("what", ["wrong password", "wrong host", "wrong address"])
def test_a_password_is_in_no_error(locked: RedisServer, tmp_path: Path, what: str):
    url = {
        "wrong password": f"redis://:x{PASSWORD}@127.0.0.1:{locked.port}/0",
        "wrong host": f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0",
        "wrong address": f"redis://:/{PASSWORD}@127.0.0.1:{locked.port}/0",
    }[what]
    environ = environment(tmp_path, url)
    (tmp_path / "a.txt").write_text("a\n")
    shell = Shell(environ, tmp_path)
    said = [shell.run(*command, status=None) for command in COMMANDS]
    assert all(done.returncode in (1, 2) and "redis://:***@127.0.0.1" in done.stderr for done in said)
    text = "".join(done.stdout + done.stderr for done in said) + workers_say(environ, tmp_path / "workers.log")
    assert PASSWORD not in text


def workers_say(environ: dict[str, str], log: Path) -> str:
    """What `workers start` and a bare Celery worker say until they end or wait for Redis."""
    workers = Workers(environ, log).start()
    bare = [sys.executable, "-P", "-m", "celery", "-A", "workers.app", "worker", "-l", "debug"]
    with log.with_name("bare.log").open("wb") as out:
        process = subprocess.Popen(bare, env=environ, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        for path in (log, log.with_name("bare.log")):
            wait_until(lambda path=path: "127.0.0.1" in path.read_text(), 30, f"it says where it fails: {path}")
    finally:
        workers.kill()
        process.kill()
        process.wait()
    return everything_under(log.parent)
