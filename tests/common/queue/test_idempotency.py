"""`--idempotency-key`: one job of all submits with a key, whatever dies in between."""

import json
import threading
from pathlib import Path

from common.jobs import JobSpec, new_job_id
from common.redis.keys import JobKeys, idempotency
from producer.queue_connection import QueueConnection
from tests.support.keyed_submits import KEY, arguments, the_job
from tests.support.processes import RedisServer, Shell, lines


def test_the_same_key_gives_the_same_job(shell: Shell, source: Path, connection: QueueConnection) -> None:
    first = shell.run(*arguments(source)).stdout
    again = shell.run(*arguments(source))
    assert again.stdout == first
    assert f"belongs to job {first.strip()}: queued" in again.stderr
    assert json.loads(shell.run(*arguments(source, "--json")).stdout)["id"] == first.strip()
    assert the_job(connection) == first.strip()


def test_with_wait_the_results_come_again(shell: Shell, source: Path, start_workers) -> None:
    start_workers()
    first = shell.run(*arguments(source, "--wait"))
    assert shell.run(*arguments(source, "--wait")).stdout == first.stdout
    assert len(lines(first.stdout)) == 95


def test_two_at_once_make_one_job(shell: Shell, source: Path, connection: QueueConnection) -> None:
    processes = [shell.popen(*arguments(source)) for _ in range(3)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    assert {out.strip() for out, _ in told} == {the_job(connection)}
    assert connection.load_job(the_job(connection)).records == 95


def test_other_options_are_refused(shell: Shell, source: Path, connection: QueueConnection) -> None:
    shell.run(*arguments(source))
    other = shell.run(*arguments(source, "-p", "top_k=3"), status=2).stderr
    assert "whose params is {}, not {'top_k': 3}" in other and f"producer delete {the_job(connection)}" in other
    assert connection.load_job(the_job(connection)).records == 95


def test_an_unusable_input_leaves_the_key_free(shell: Shell, source: Path, server: RedisServer) -> None:
    shell.environ["HUGQUEUE_MAX_JOB_RECORDS"] = "60"
    shell.run(*arguments(source), status=2)
    assert server.client.keys("hugqueue:*") == []
    del shell.environ["HUGQUEUE_MAX_JOB_RECORDS"]
    shell.run(*arguments(source))


def test_a_deleted_job_frees_its_key(shell: Shell, source: Path, server: RedisServer) -> None:
    job = shell.run(*arguments(source)).stdout.strip()
    shell.run("delete", "--force", job)
    assert server.client.keys("hugqueue:[ij]*") == []
    assert shell.run(*arguments(source)).stdout.strip() != job


def test_the_key_expires_with_its_job(shell: Shell, source: Path, server: RedisServer) -> None:
    job = shell.run(*arguments(source)).stdout.strip()
    mapping = idempotency(KEY[1])
    assert server.client.get(mapping) == job.encode() and server.client.pttl(mapping) == -1
    shell.run("cancel", job)
    assert abs(server.client.pttl(mapping) - server.client.pttl(JobKeys.of(job).job)) < 10_000
    assert server.client.pttl(mapping) > 0
    shell.run("retry", job)
    assert server.client.pttl(mapping) == -1


def test_of_many_submits_at_the_same_moment_one_begins_the_job(connection: QueueConnection) -> None:
    ids: list[str] = []

    def begin() -> None:
        ids.append(connection.store.create(JobSpec(new_job_id(), "test-echo", created_at=1.0), "k"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8 and len(set(ids)) == 1 and connection.store.active() == [ids[0]]


def test_a_job_that_was_abandoned_frees_its_key(connection: QueueConnection) -> None:
    store, old, new = connection.store, JobSpec(new_job_id(), "test-echo"), JobSpec(new_job_id(), "test-echo")
    assert store.create(old, "k") == old.id
    assert store.create(new, "k") == old.id
    assert not connection.ledger.abandon(old.id, store.job(old.id).producer_seen - 1), "it was seen since"
    assert connection.ledger.abandon(old.id, store.job(old.id).producer_seen)
    assert store.create(new, "k") == new.id
    store.delete(old.id)
    assert store.create(JobSpec(new_job_id(), "test-echo"), "k") == new.id
