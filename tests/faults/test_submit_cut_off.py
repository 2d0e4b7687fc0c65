"""`--idempotency-key`: a submit that is killed, frozen or interrupted goes on where it stopped."""

from pathlib import Path

import pytest

from common.jobs import JobStatus
from common.redis.keys import JobKeys, idempotency
from producer.queue_connection import QueueConnection
from tests.support.keyed_submits import HEAD, KEY, arguments, cut_off, inputs_of, the_job
from tests.support.ledger_jobs import look
from tests.support.processes import Shell, lines


@pytest.mark.parametrize("give_up", [False, True], ids=["at once", "after it was given up"])
def test_a_submit_that_was_killed_goes_on_where_it_stopped(
    shell: Shell, source: Path, connection: QueueConnection, start_workers, give_up: bool
) -> None:
    with cut_off(shell, connection, HEAD, 6):
        job, client = the_job(connection), connection.store.client
    client.hset(JobKeys.of(job).input, "2", b"a payload that would be written anew")
    if give_up:
        assert connection.ledger.give_up(job, look(connection.ledger, job).producer_seen)
        assert client.pttl(idempotency(KEY[1])) > 0
    done = shell.run(*arguments(source))
    assert done.stdout.strip() == job
    assert f"Job {job} was cut off after 60 records; going on from there." in done.stderr
    assert client.hget(JobKeys.of(job).input, "2") == b"a payload that would be written anew"
    state = connection.load_job(job)
    assert (state.status, state.records, state.chunks, state.failure) == (JobStatus.QUEUED, 95, 10, None)
    assert client.pttl(idempotency(KEY[1])) == client.pttl(JobKeys.of(job).input) == -1


def test_what_a_killed_submit_wrote_is_neither_lost_nor_doubled(
    shell: Shell, source: Path, connection: QueueConnection, start_workers
) -> None:
    with cut_off(shell, connection, HEAD, 6):
        pass
    start_workers()
    done = shell.run(*arguments(source, "--wait", "--chunk-size", "7"))
    assert [row["output"] for row in lines(done.stdout)] == [f"LINE {number}" for number in range(95)]


@pytest.mark.faults
def test_chunks_that_were_cleared_away_are_written_anew(
    shell: Shell, source: Path, connection: QueueConnection
) -> None:
    with cut_off(shell, connection, HEAD, 6):
        job = the_job(connection)
    connection.store.client.delete(JobKeys.of(job).input)
    assert shell.run(*arguments(source)).stdout.strip() == job
    assert connection.store.client.hlen(JobKeys.of(job).input) == 10
    assert inputs_of(shell, job) == [f"line {number}" for number in range(95)]


@pytest.mark.faults
def test_the_second_waits_until_the_first_has_submitted(
    shell: Shell, source: Path, connection: QueueConnection
) -> None:
    with cut_off(shell, connection, HEAD, 6) as first:
        second = shell.popen(*arguments(source))
        assert second.stderr
        told = second.stderr.readline() + second.stderr.readline()  # the first says that there is no worker
        assert "Another producer submits job" in told
        out, err = first.communicate(source.read_text().removeprefix(HEAD))
        assert first.returncode == 0, err
        assert second.communicate(timeout=60)[0] == out


@pytest.mark.faults
def test_a_producer_that_was_frozen_and_replaced_changes_nothing(
    shell: Shell, source: Path, connection: QueueConnection
) -> None:
    with cut_off(shell, connection, HEAD, 6) as frozen:
        frozen.send_signal(19)
        job = shell.run(*arguments(source)).stdout
        frozen.send_signal(18)
        out, err = frozen.communicate("and something else\n", timeout=60)
    assert (frozen.returncode, out) == (0, job), err
    assert "Another producer has taken over" in err
    assert inputs_of(shell, job.strip()) == [f"line {number}" for number in range(95)]


def test_ctrl_c_keeps_what_is_written_for_the_next(shell: Shell, source: Path, connection: QueueConnection) -> None:
    with cut_off(shell, connection, HEAD, 6) as process:
        process.send_signal(2)
        assert process.wait(30) == 130
    assert "was cut off after 60 records" in shell.run(*arguments(source)).stderr


@pytest.mark.faults
def test_an_input_that_changed_behind_its_head_cannot_go_on(
    shell: Shell, source: Path, connection: QueueConnection
) -> None:
    with cut_off(shell, connection, HEAD, 6):
        job = the_job(connection)
    source.write_text(source.read_text().replace("line 57", "another"))
    assert "some are not those of this input" in shell.run(*arguments(source), status=2).stderr
    assert connection.load_job(job).status is JobStatus.SUBMITTING
    source.write_text(source.read_text().replace("another", "line 57"))
    assert shell.run(*arguments(source)).stdout.strip() == job
