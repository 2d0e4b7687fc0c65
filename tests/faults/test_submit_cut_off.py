"""`--idempotency-key`: the same command creates the job of a killed, frozen or interrupted submit again."""

from pathlib import Path

import pytest

from common.jobs import JobStatus
from common.redis.keys import JobKeys, idempotency
from producer.queue_connection import QueueConnection
from tests.support.keyed_submits import HEAD, KEY, arguments, cut_off, inputs_of, the_job
from tests.support.ledger_jobs import look
from tests.support.processes import Shell, lines


@pytest.mark.parametrize("abandoned", [False, True], ids=["silent", "abandoned"])
def test_the_job_of_a_killed_submit_is_made_anew(
    shell: Shell, source: Path, connection: QueueConnection, start_workers, abandoned: bool
) -> None:
    with cut_off(shell, connection, HEAD, 6):
        old, client = the_job(connection), connection.store.client
    if abandoned:
        assert connection.ledger.abandon(old, look(connection.ledger, old).producer_seen)
    done = shell.run(*arguments(source))
    job = done.stdout.strip()
    assert job == the_job(connection) != old
    assert abandoned or f"Job {old} was interrupted before it was accepted; submitting it again." in done.stderr
    state = connection.load_job(job)
    assert (state.status, state.records, state.chunks, state.failure) == (JobStatus.QUEUED, 95, 10, None)
    assert client.pttl(idempotency(KEY[1])) == client.pttl(JobKeys.of(job).job) == -1
    failure = connection.load_job(old).failure
    assert failure and failure.code == "producer_died" and not client.exists(JobKeys.of(old).input)


def test_no_record_of_a_killed_submit_is_lost_or_doubled(
    shell: Shell, source: Path, connection: QueueConnection, start_workers
) -> None:
    with cut_off(shell, connection, HEAD, 6):
        pass
    start_workers()
    done = shell.run(*arguments(source, "--wait", "--chunk-size", "7"))
    assert [row["output"] for row in lines(done.stdout)] == [f"LINE {number}" for number in range(95)]


@pytest.mark.faults
def test_the_second_waits_until_the_first_has_submitted(
    shell: Shell, source: Path, connection: QueueConnection
) -> None:
    with cut_off(shell, connection, HEAD, 6) as first:
        second = shell.popen(*arguments(source))
        assert second.stderr
        told = second.stderr.readline() + second.stderr.readline()  # the first says that there is no worker
        assert "Another command submits job" in told
        out, err = first.communicate(source.read_text().removeprefix(HEAD))
        assert first.returncode == 0, err
        assert second.communicate(timeout=60)[0] == out


@pytest.mark.faults
def test_a_producer_that_was_frozen_and_replaced_changes_nothing(
    shell: Shell, source: Path, connection: QueueConnection
) -> None:
    with cut_off(shell, connection, HEAD, 6) as frozen:
        frozen.send_signal(19)
        job = shell.run(*arguments(source)).stdout.strip()
        frozen.send_signal(18)
        out, err = frozen.communicate("and something else\n", timeout=60)
    assert (frozen.returncode, out) == (1, ""), err
    assert "cannot be submitted" in err
    assert the_job(connection) == job
    assert inputs_of(shell, job) == [f"line {number}" for number in range(95)]


def test_ctrl_c_frees_the_key(shell: Shell, source: Path, connection: QueueConnection) -> None:
    with cut_off(shell, connection, HEAD, 6) as process:
        process.send_signal(2)
        assert process.wait(30) == 130
    assert connection.store.client.keys("hugqueue:[ij]*") == []
    assert shell.run(*arguments(source)).stdout.strip() == the_job(connection)
