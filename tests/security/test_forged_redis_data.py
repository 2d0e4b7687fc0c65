"""Values from Redis are untrusted: what others write there is refused and logged, and ends no worker."""

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UnknownJob
from common.jobs import JobSpec
from common.payloads.backends import outcome_name
from common.queue.heartbeats import live_workers
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.redis import keys
from common.redis.keys import CELERY_PREFIX, JobKeys
from tests.support import forged_redis_data
from tests.support.forged_messages import ticket
from tests.support.processes import RedisServer, Shell, Workers, wait_until


def does_a_job(shell: Shell, directory: Path) -> bool:
    """Whether the worker still does its work."""
    (directory / "good.txt").write_text("a\nb\n")
    done = shell.run("submit", "--task", "test-echo", "good.txt", "--wait", seconds=60)
    return [json.loads(line)["output"] for line in done.stdout.splitlines()] == ["A", "B"]


def test_a_forged_payload_fails_its_job_and_no_worker(
    server: RedisServer, shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path
):
    workers = start_workers()
    before = workers.celery().pid, workers.device().pid
    jobs = {}
    for what, payload in forged_redis_data.payloads().items():
        jobs[what] = forged_redis_data.write_job(server.client, {})
        server.client.hset(JobKeys.of(jobs[what]).input, "0", payload)
    store = JobStore(server.client, 60)
    wait_until(lambda: all(store.job(job).status.finished for job in jobs.values()), 60, "all are over")
    codes = {what: (store.job(job).failure or "none") for what, job in jobs.items()}
    assert {what: getattr(failure, "code", failure) for what, failure in codes.items()} == dict.fromkeys(
        jobs, "broken_payload"
    )
    assert does_a_job(shell, tmp_path)
    assert (workers.celery().pid, workers.device().pid) == before


def test_forged_outcomes_are_reported_in_one_sentence(server: RedisServer, shell: Shell):
    ledger = Ledger(server.client, 30)
    payloads = forged_redis_data.payloads()
    for payload in (payloads["truncated"], payloads["bomb"], payloads["random"], forged_redis_data.GOOD):
        job = forged_redis_data.write_job(server.client, {"status": "completed", "finished_at": "5"})
        server.client.hset(JobKeys.of(job).commit_history, "0", "0:1")
        server.client.hset(JobKeys.of(job).output, outcome_name(0, (0, 1)), payload)
        said = shell.run("results", job, status=1).stderr
        assert len(said.strip().splitlines()) == 1, said
    assert ledger.tickets(job) == set()


def test_forged_jobs_keys_and_heartbeats_stop_neither_workers_nor_commands(
    server: RedisServer, shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path
):
    workers = start_workers()
    before = workers.celery().pid, workers.device().pid
    [sound] = [beat.as_dict() for beat in live_workers(server.client)]
    forged_redis_data.write_heartbeats(server.client, sound)
    forged_redis_data.write_wrong_types(server.client)
    jobs = [forged_redis_data.write_job(server.client, fields) for fields in forged_redis_data.broken_hashes()]
    jobs += [forged_redis_data.write_job(server.client, {}, **spec) for spec in forged_redis_data.broken_specs()]
    for job in jobs:  # tickets for them, as if they counted
        message = ticket(job)
        server.client.sadd(JobKeys.of(job).tickets, message["headers"]["id"])
        server.client.lpush(f"{CELERY_PREFIX}any", json.dumps(message))
    assert does_a_job(shell, tmp_path)
    wait_until(lambda: server.client.llen(f"{CELERY_PREFIX}any") == 0, 30, "all forged tickets were taken")
    assert does_a_job(shell, tmp_path)
    assert [beat.name for beat in live_workers(server.client)] == [sound["name"]]
    assert shell.run("workers").stdout.count("forged") == 0
    shell.run("jobs")
    shell.run("jobs", "--json")
    assert workers.celery().pid == before[0]
    _lost_leases_are_still_found(server, shell)


def _lost_leases_are_still_found(server: RedisServer, shell: Shell) -> None:
    """The reaper looks after the other jobs, whatever lies beside them."""
    job = forged_redis_data.write_job(server.client, {"status": "running"})
    server.client.delete(JobKeys.of(job).open)
    server.client.sadd(JobKeys.of(job).leased, "0")
    shell.run("wait", job, seconds=60)


def test_a_forged_job_is_shown_as_it_is_or_not_at_all(server: RedisServer, shell: Shell):
    jobs = [forged_redis_data.write_job(server.client, fields) for fields in forged_redis_data.broken_hashes()]
    jobs += [forged_redis_data.write_job(server.client, {}, **spec) for spec in forged_redis_data.broken_specs()]
    store = JobStore(server.client, 60)
    readable = {job.id for job in store.each_job()}
    assert "0123456789ab" not in readable
    for job in jobs:
        if job in readable:
            assert job in shell.run("status", job).stdout
        else:
            with pytest.raises(UnknownJob):
                store.job(job)
    shell.run("jobs")
    said = shell.run("status", next(job for job in jobs if job not in readable), status=1).stderr
    assert len(said.strip().splitlines()) == 1


def test_a_terminal_escape_sequence_in_a_job_is_not_passed_on(server: RedisServer, shell: Shell):
    job = forged_redis_data.write_job(server.client, {"stage": "\x1b[2J"}, inputs=["\x9b2J"])
    for command in (("status", job), ("jobs",), ("jobs", "--json"), ("status", job, "--json")):
        said = shell.run(*command).stdout
        assert job in said
        assert not {"\x1b", "\x07", "\x9b"} & set(said)


def test_a_job_with_a_terminal_escape_in_its_name_is_unknown(server: RedisServer, shell: Shell):
    job = forged_redis_data.write_job(server.client, {}, name="\x1b]0;evil\x07")
    for command, status in ((("status", job), 1), (("jobs",), 0), (("jobs", "--json"), 0)):
        done = shell.run(*command, status=status)
        assert not {"\x1b", "\x07"} & set(done.stdout + done.stderr)


def test_a_pickle_is_not_opened(
    server: RedisServer, shell: Shell, start_workers: Callable[..., Workers], tmp_path: Path
):
    class Evil:
        def __reduce__(self) -> object:
            return Path.touch, (tmp_path / "opened",)

    workers = start_workers()
    before = workers.celery().pid
    for content_type in ("application/x-python-serialize", "pickle"):
        body = base64.b64encode(pickle.dumps([[Evil()], {}, {}])).decode()
        message = ticket() | {"body": body, "content-type": content_type, "content-encoding": "binary"}
        server.client.lpush(f"{CELERY_PREFIX}any", json.dumps(message))
    assert does_a_job(shell, tmp_path)
    wait_until(lambda: "untrusted content" in workers.text() or "refused" in workers.text(), 30, "it is logged")
    assert workers.celery().pid == before
    assert not (tmp_path / "opened").exists()


def test_a_job_under_the_id_of_another_is_unknown(server: RedisServer):
    spec = JobSpec("0123456789ab", "test-echo")
    forged_redis_data.write_job(server.client, {"spec": spec.encode()}, job_id="ba9876543210")
    with pytest.raises(UnknownJob):
        JobStore(server.client, 60).job("ba9876543210")
    assert server.client.sismember(keys.ACTIVE, "ba9876543210")
