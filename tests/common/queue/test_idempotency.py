"""`--idempotency-key`: one job of all submits with a key, whatever dies in between."""

import json
import threading
from pathlib import Path

import pytest

from common.errors import JobTaken
from common.jobs import JobSpec, Written, new_job_id
from common.queue.idempotency import Claim
from common.redis.keys import JobKeys, idempotency
from producer.queue_connection import QueueConnection
from tests.support.keyed_submits import KEY, arguments, the_job
from tests.support.ledger_jobs import payloads
from tests.support.processes import RedisServer, Shell, lines


def test_the_same_key_gives_the_same_job(shell: Shell, source: Path, connection: QueueConnection) -> None:
    first = shell.run(*arguments(source)).stdout
    again = shell.run(*arguments(source))
    assert again.stdout == first
    assert f"stands for job {first.strip()}: queued" in again.stderr
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


def test_other_options_or_another_input_are_refused(shell: Shell, source: Path, connection: QueueConnection) -> None:
    shell.run(*arguments(source))
    other = shell.run(*arguments(source, "-p", "top_k=3"), status=2).stderr
    assert "whose params is {}, not {'top_k': 3}" in other and f"producer delete {the_job(connection)}" in other
    source.write_text("something else\n")
    assert "the first records differ" in shell.run(*arguments(source), status=2).stderr
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


def test_the_key_lives_as_long_as_its_job(shell: Shell, source: Path, server: RedisServer) -> None:
    job = shell.run(*arguments(source)).stdout.strip()
    mapping = idempotency(KEY[1])
    assert server.client.get(mapping) == job.encode() and server.client.pttl(mapping) == -1
    shell.run("cancel", job)
    assert abs(server.client.pttl(mapping) - server.client.pttl(JobKeys.of(job).job)) < 10_000
    assert server.client.pttl(mapping) > 0
    shell.run("retry", job)
    assert server.client.pttl(mapping) == -1


def test_of_many_claims_at_the_same_moment_one_begins_the_job(connection: QueueConnection) -> None:
    claims = [Claim("k", "head") for _ in range(8)]
    ids: list[str] = []

    def begin(claim: Claim) -> None:
        ids.append(connection.claims.begin(JobSpec(new_job_id(), "test-echo", created_at=1.0), claim))

    threads = [threading.Thread(target=begin, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1 and connection.store.active() == [ids[0]]
    taken = [connection.claims.take(ids[0], claim, 60) for claim in claims]
    assert sorted(map(str, taken)) == sorted([*["busy"] * 7, str(Written())])
    [winner] = [claim for claim, answer in zip(claims, taken, strict=True) if answer == Written()]
    loser = next(claim for claim in claims if claim is not winner)
    job_payloads = payloads(connection.store, ids[0])
    job_payloads.add_records(0, b"x", winner.producer, Written(1, 1, "d"))
    with pytest.raises(JobTaken):
        job_payloads.add_records(1, b"x", loser.producer, Written(2, 2, "e"))
    with pytest.raises(JobTaken):
        connection.ledger.accept(ids[0], 2, 2, loser.producer)
    assert connection.claims.take(ids[0], loser, 0) == Written(1, 1, "d")
