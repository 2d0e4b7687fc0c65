"""Told when a job ends: real workers and commands, and a receiver that answers with an error first."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from common.notifications import NotificationState
from common.redis import keys
from hugqueue import Client
from tests.support.embedded_processes import Home
from tests.support.processes import DEMO_MODEL, RedisServer, Shell, Workers, environment, free_port, wait_until
from tests.support.webhook_receiver import SECRET, Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(500) as running:
        yield running


def delivered(shell: Shell, job: str) -> dict[str, Any]:
    """Return what `producer status --json` shows of a notification once it is delivered."""
    return wait_until(lambda: (n := shell.status(job)["notify"])["state"] == "delivered" and n, 30, f"{job} is told")


def test_each_job_of_two_workers_is_told_once_when_it_ends(
    shell: Shell, start_workers: Callable[..., Workers], server: RedisServer, receiver: Receiver, tmp_path: Path
) -> None:
    settings = {"HUGQUEUE_NOTIFY_ALLOWED": receiver.origin, "HUGQUEUE_NOTIFY_SECRET": SECRET}
    workers = [start_workers(HUGQUEUE_NOTIFY_RETRY="0.2", **settings) for _ in range(2)]
    (tmp_path / "in.txt").write_text("a\nbroken\nc\n")
    told = ("--notify", receiver.url)
    job = shell.submit("--task", "test-echo", "in.txt", "-p", "fail=broken", "--name", "mine", "-l", "run=7", *told)
    shown = delivered(shell, job)
    assert shown["url"] == f"{receiver.origin}/***" and shown["attempts"] == 2 and shown["error"] is None
    first, second = receiver.received
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    message = Webhook(SECRET).verify(second.body.decode(), dict(second.headers))
    state = shell.status(job)
    assert (message["type"], message["timestamp"]) == ("job.completed", state["finished_at"])
    data = message["data"]
    assert data["job"] == {key: state[key] for key in data["job"]} and data["job"]["labels"] == {"run": "7"}
    assert data["counts"] == {"records": 3, "done": 3, "succeeded": 2, "failed": 1, "truncated": 0}
    assert shell.run(*data["results"]["command"].split()[1:]).stdout.count("\n") == 3

    failed = shell.submit("--task", "test-echo", "in.txt", "-p", "fail=broken", "--max-errors", "0", *told)
    shell.environ["HUGQUEUE_NOTIFY_URL"] = receiver.url
    waiting = shell.submit("--task", "test-echo", "in.txt", "--device", "gpu")
    quiet = shell.submit("--task", "test-echo", "in.txt", "--notify", "")
    assert "(when the job has ended)" in shell.run("status", waiting).stdout
    shell.run("cancel", waiting)
    for ended in (failed, waiting):
        delivered(shell, ended)
    [tells] = receiver.messages(failed)
    assert tells["type"] == "job.failed" and tells["data"]["failure"]["code"] == "too_many_errors"
    assert [tells["type"] for tells in receiver.messages(waiting)] == ["job.cancelled"]
    shell.run("retry", job)
    wait_until(lambda: len(receiver.messages(job)) == 3, 30, "the end of its second round is told")
    assert [found["data"]["round"] for found in receiver.messages(job)] == [0, 0, 1]
    assert shell.status(quiet)["notify"] is None and len(receiver.received) == 5

    assert f"{receiver.origin}/*** (delivered at " in shell.run("status", failed).stdout
    seen = "".join(
        shell.run(*words).stdout for words in (("status", job), ("jobs", "--json"), ("status", job, "--json"))
    )
    assert "swordfish" not in seen + "".join(each.text() for each in workers) and SECRET not in seen
    assert all(SECRET not in str(part.environ()) for each in workers for part in [each.device()])
    shell.run("delete", job, failed, waiting, quiet)
    assert not server.client.keys("hugqueue:notifications")


def test_private_addresses_are_not_told_unless_they_are_named(
    shell: Shell, start_workers: Callable[..., Workers], receiver: Receiver, tmp_path: Path
) -> None:
    start_workers(HUGQUEUE_NOTIFY_RETRY="60", HUGQUEUE_NOTIFY_GIVE_UP="30")
    (tmp_path / "in.txt").write_text("a\n")
    urls = (receiver.url, receiver.url.replace("http:", "https:"), "https://[::ffff:127.0.0.1]/jobs")
    jobs = [shell.submit("--task", "test-echo", "in.txt", "--notify", url) for url in urls]
    errors = [
        wait_until(lambda job=job: (n := shell.status(job)["notify"])["state"] == "given_up" and n["error"], 30)
        for job in jobs
    ]
    assert errors[0].startswith("only https is allowed") and errors[1].startswith("127.0.0.1 has no public address")
    assert errors[2].startswith("::ffff:127.0.0.1 has no public address") and not receiver.received
    assert f"{receiver.origin}/*** (given up after 1 attempt: only https" in shell.run("status", jobs[0]).stdout


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("hooks.example.com/swordfish", "it is not an http:// or https:// URL with a host"),
        ("ftp://hooks.example.com/swordfish", "it is not an http:// or https:// URL with a host"),
        ("https:///swordfish", "it is not an http:// or https:// URL with a host"),
        ("https://hooks.example.com:x/swordfish", "its host or port is invalid"),
        ("https://me:swordfish@hooks.example.com/", "it contains a user name or password"),
        ("https://hooks.example.com/a b/swordfish", "it contains a space"),
        ("https://hooks.example.com/#swordfish", "it has a fragment"),
        ("https://hooks.example.com/" + "x" * 2048, "it has 2,074 characters, and 2,048 are allowed"),
    ],
)
def test_a_url_that_cannot_be_told_is_refused_and_not_shown(shell: Shell, tmp_path: Path, url: str, fault: str) -> None:
    (tmp_path / "in.csv").write_text("text,label\na,1\nb,0\n")
    for command in (("submit", "--task", "test-echo"), ("finetune", "-m", "org/model")):
        said = shell.run(*command, "in.csv", "--notify", url, status=2).stderr
        assert said.startswith(f"Error: --notify: {fault}") and "swordfish" not in said
    shell.environ["HUGQUEUE_NOTIFY_URL"] = url
    said = shell.run("submit", "--task", "test-echo", "in.csv", status=2).stderr
    assert said.startswith(f"Error: HUGQUEUE_NOTIFY_URL: {fault}") and "swordfish" not in said


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("HUGQUEUE_NOTIFY_SECRET", "whsec_swordfish", "expected whsec_ and 24 to 64 bytes in base64"),
        ("HUGQUEUE_NOTIFY_SECRET", SECRET.removeprefix("whsec_"), "expected whsec_ and 24 to 64 bytes in base64"),
        ("HUGQUEUE_NOTIFY_ALLOWED", "hooks.internal", "expected origins such as http://hooks.internal:8080, or *"),
        ("HUGQUEUE_NOTIFY_ALLOWED", "http://hooks.internal/jobs", "expected origins such as"),
        ("HUGQUEUE_NOTIFY_ALLOWED", "https://*.internal", "expected origins such as"),
    ],
)
def test_wrong_settings_are_refused(shell: Shell, name: str, value: str, fault: str) -> None:
    shell.environ[name] = value
    said = shell.run("jobs", status=2).stderr
    assert said.startswith(f"Error: {name}: {fault}") and "swordfish" not in said


def test_a_key_with_another_url_is_refused_without_showing_it(shell: Shell, receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    keyed = ("--task", "test-echo", "in.txt", "--idempotency-key", "k", "--notify")
    job = shell.submit(*keyed, receiver.url)
    assert shell.submit(*keyed, receiver.url) == job
    said = shell.run("submit", *keyed, "https://hooks.example.com/swordfish", status=2).stderr
    assert re.search(r"whose notify is 'http://127[^']*/\*\*\*', not 'https://hooks.example.com/\*\*\*'", said)


def test_programs_name_a_url_too(server: RedisServer) -> None:
    url = "https://hooks.example.com/swordfish"
    with Client(server.url) as client:
        examples = [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}] * 4
        jobs = [
            client.submit(task="fill-mask", records=["a [MASK]."], notify=url),
            client.finetune(records=examples, model=str(DEMO_MODEL), notify=url),
        ]
        for job in jobs:
            assert job.state.spec.notify == url and job.state.notification is None
            job.cancel()
            found = job.refresh().notification
            assert found and (found.state, found.attempts, found.error) == (NotificationState.PENDING, 0, "")
        waiting = {member.decode() for member in server.client.zrange(keys.NOTIFICATIONS, 0, -1)}
    assert waiting == {job.id for job in jobs}


def test_the_embedded_queue_tells_before_it_stops_and_otherwise_when_it_runs_again(tmp_path: Path) -> None:
    home, port = Home(environment(tmp_path, HUGQUEUE_DEVICE="cpu", HUGQUEUE_NOTIFY_RETRY="0.2")), free_port()
    shell = Shell(home.environ, tmp_path)
    (tmp_path / "in.txt").write_text("a\n")
    try:
        submit = ("submit", "--task", "test-echo", "in.txt", "--notify", f"http://127.0.0.1:{port}/jobs")
        shell.run(*submit)
        home.wait_until_empty(seconds=60)
        with Receiver(port=port) as receiver:
            shell.run(*submit)
            home.wait_until_empty(seconds=60)
            jobs = json.loads(shell.run("jobs", "--json").stdout)
            assert sorted(found.message["data"]["job"]["id"] for found in receiver.received) == sorted(
                job["id"] for job in jobs
            )
        assert [job["notify"]["state"] for job in jobs] == ["delivered", "delivered"]
    finally:
        home.end()
