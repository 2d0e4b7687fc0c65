"""Redis with users: each role does its work with the rules of docs/security.md, and cannot do more."""

from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest
import redis
from celery import chain, chord

from common.queue.heartbeats import live_workers
from common.redis.keys import CELERY_PREFIX, DEAD_LETTERS, JobKeys, token_budgets
from tests.support.celery_apps import OtherApp, control
from tests.support.flower_process import flower, get
from tests.support.processes import DEMO_MODEL, RedisServer, Shell, Workers, environment, wait_until
from tests.support.redis_acl import PASSWORD, add_users, denied, rules

PAGES = ("/workers", "/tasks", "/broker", "/api/queues/length")


def url_of(server: RedisServer, role: str) -> str:
    return f"redis://{role}:{PASSWORD}@127.0.0.1:{server.port}/0"


@pytest.fixture
def users(server: RedisServer, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Make the users; return the environment of one of them."""
    add_users(server.client)
    times = {"HUGQUEUE_LEASE": "3", "HUGQUEUE_RENEW": "0.3", "HUGQUEUE_REAP": "0.5"}
    return lambda role: environment(tmp_path, url_of(server, role), **times)


@pytest.fixture
def workers(server: RedisServer, users: Callable[[str], dict[str, str]], tmp_path: Path) -> Iterator[Workers]:
    started = Workers(users("worker"), tmp_path / "workers.log").start()
    wait_until(lambda: any(beat.state == "ready" for beat in live_workers(server.client)), 60, f"ready: {started.log}")
    yield started
    started.kill()


def test_each_role_works_with_its_own_rules_and_nothing_is_refused(
    server: RedisServer, users: Callable[[str], dict[str, str]], workers: Workers, tmp_path: Path
):
    shell = Shell(users("producer"), tmp_path)
    (tmp_path / "a.txt").write_text("a\nb\nbroken\n" * 10)
    with flower(users("flower"), tmp_path / "flower.log") as address:
        wait_until(lambda: "cpu-" in get(f"{address}/api/workers?refresh=1"), 30, "Flower asks the worker")
        _do_everything(shell)
        wait_until(lambda: "hugqueue.test-echo" in get(f"{address}/api/tasks"), 30, "Flower saw the tickets")
        assert all(get(address + page) for page in PAGES)
    assert shell.run("workers").stdout.count("cpu-") == 1
    assert workers.stop() == 0
    assert denied(server.client) == []
    assert "NOPERM" not in workers.text() + (tmp_path / "flower.log").read_text()


def _do_everything(shell: Shell) -> None:
    """Submit, wait, retry, look, cancel."""
    options = ("-p", "fail=broken", "--chunk-size", "4", "--notify", "https://127.0.0.1/jobs")
    job = shell.submit("--task", "test-echo", "a.txt", *options)
    shell.run("wait", job, status=3)
    wait_until(lambda: shell.status(job)["notify"]["error"], 30, "an attempt to tell its end is noted")
    shell.run("retry", job)
    shell.run("wait", job, status=3)
    assert [line["output"] for line in shell.results(job)[:2]] == ["A", "B"]
    slow = shell.submit("--task", "test-wait", "a.txt", "-p", "seconds=60")
    wait_until(lambda: shell.status(slow)["status"] == "running", 30)
    shell.run("cancel", slow)
    wait_until(lambda: shell.status(slow)["status"] == "cancelled", 30)
    assert slow in shell.run("jobs").stdout


def test_tasks_of_celery_apps_are_served_under_the_rules(
    server: RedisServer, users: Callable[[str], dict[str, str]], workers: Workers, tmp_path: Path
):
    app = OtherApp(server.url)
    follow = app.celery.signature("other.note")
    with control(users("control"), tmp_path) as process:
        jobs = [app.signature("submit", ["a"], task="test-echo", callback=follow) for _ in range(2)]
        header = [chain(job, app.signature("wait")) for job in jobs]
        ends = chord(header)(app.signature("submit", task="test-echo", column="status"))
        job = ends.get(timeout=60)
        assert app.call("wait", job)["status"] == "completed"
        assert len(app.call("results", job)) == 2
        wait_until(lambda: server.client.llen("celery") == 2, 30, "the callbacks are sent")
        assert process.stop() == 0
    assert denied(server.client) == []


def test_what_lies_in_files_and_what_is_learned_is_kept_under_the_rules(
    server: RedisServer, users: Callable[[str], dict[str, str]], tmp_path: Path
):
    shared = tmp_path / "shared"
    locations = {"HUGQUEUE_SHARED": str(shared), "HUGQUEUE_STORE_URL": str(shared / "store")}
    started = Workers(users("worker") | locations | {"HUGQUEUE_MODEL_ROOTS": str(DEMO_MODEL)}, tmp_path / "log").start()
    shell = Shell(users("producer") | locations, tmp_path)
    try:
        (tmp_path / "a.txt").write_text("".join(f"{token_hex(50)} is [MASK].\n" for _ in range(40)))
        options = ("-m", str(DEMO_MODEL), "-o", f"{shared}/out/", "--idempotency-key", "x")
        shell.run("submit", "--task", "fill-mask", "a.txt", *options)
        assert (shared / "out" / "_SUCCESS").exists()
        [job] = [path.name for path in (shared / "store").iterdir()]
        shell.run("delete", job)
        assert server.client.keys(token_budgets("*")), "how large its batches are to be"
        assert server.client.pttl(server.client.keys(token_budgets("*"))[0]) > 0
        assert denied(server.client) == []
        assert "NOPERM" not in started.text()
    finally:
        started.kill()


def test_leftovers_of_dead_workers_and_producers_are_removed_under_acl(
    server: RedisServer, users: Callable[[str], dict[str, str]], workers: Workers, tmp_path: Path
):
    shell = Shell(users("producer") | {"HUGQUEUE_RESULT_TTL": "60"}, tmp_path)
    (tmp_path / "a.txt").write_text("a\nb\n")
    go = tmp_path / "go"
    job = shell.submit("--task", "test-wait", "a.txt", "-p", f"until={go}")
    wait_until(lambda: shell.status(job)["status"] == "running", 60)
    server.client.delete(f"{JobKeys.of(job).job}:lease:0")
    workers.celery().kill()
    go.touch()
    shell.run("wait", job)
    server.client.lpush(f"{CELERY_PREFIX}any", b"not a message")
    wait_until(lambda: server.client.llen(DEAD_LETTERS) == 1, 30, "the broken message is set aside")
    assert denied(server.client) == []


COMMANDS = [
    ("FLUSHALL",),
    ("CONFIG", "GET", "requirepass"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("EVAL", "return 1", "0"),
    ("ACL", "LIST"),
    ("SAVE",),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("CLIENT", "LIST"),
    ("GET", "other"),
    ("DEL", "other"),
    ("LPUSH", "other", "x"),
    ("PUBLISH", "other", "x"),
]


@pytest.mark.parametrize("role", sorted(rules()))
def test_a_role_can_do_nothing_beyond_its_work(server: RedisServer, role: str):
    add_users(server.client)
    server.client.set("other", "secret")
    client = redis.Redis.from_url(url_of(server, role))
    assert client.ping()
    for command in COMMANDS:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)
    assert server.client.get("other") == b"secret"


def test_the_user_of_flower_cannot_read_records(server: RedisServer):
    add_users(server.client)
    client = redis.Redis.from_url(url_of(server, "flower"))
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command("DEL", JobKeys.of("0123456789ab").input)


def test_a_user_without_permission_gets_a_one_sentence_error(server: RedisServer, tmp_path: Path):
    server.client.execute_command("ACL", "SETUSER", "poor", "on", f">{PASSWORD}", "~other:*", "+@all")
    shell = Shell(environment(tmp_path, url_of(server, "poor")), tmp_path)
    done = shell.run("jobs", status=1)
    assert "denies this user" in done.stderr
    assert PASSWORD not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
