"""The worker of the embedded Redis: there while somebody waits for work, and its failure told to the jobs."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from common.errors import NotSubmitting
from common.jobs import Job, JobSpec, JobStatus, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from tests.support.embedded_processes import Holder, Home
from tests.support.processes import wait_until

SUPERVISOR = "workers.cli start"
NO_SUCH_GPU = {"HUGQUEUE_DEVICE": "cuda:977"}

Hold = Callable[..., Holder]


@pytest.fixture
def hold(home: Home) -> Iterator[Hold]:
    holders: list[Holder] = []

    def start(*, with_worker: bool = True, **changes: str) -> Holder:
        holders.append(Holder(home.environ | changes, with_worker=with_worker))
        return holders[-1]

    yield start
    for holder in holders:
        if holder.process.poll() is None:
            holder.kill()


def accept_job(holder: Holder) -> str:
    """Submit a job of one chunk, without tickets: nobody will run it."""
    spec = JobSpec(new_job_id(), "fill-mask", created_at=time.time())
    store = JobStore(holder.client, 60)
    store.create(spec)
    with suppress(NotSubmitting):  # it may have failed already: its daemon looks all the time
        store.payloads(spec).add_records(0, b"")
        Ledger(holder.client, 30).accept(spec.id, 1, 1)
    return spec.id


def failed(holder: Holder, job_id: str) -> Job | None:
    job = JobStore(holder.client, 60).job(job_id)
    return job if job.status is JobStatus.FAILED else None


def wait_for_worker(home: Home) -> None:
    wait_until(lambda: home.processes(SUPERVISOR), 20, "a supervisor")


def test_a_worker_starts_for_a_command_that_needs_one_and_ends_with_it(home: Home, hold: Hold) -> None:
    holder = hold()
    assert [line for line in holder.facts["said"] if str(home.path / "worker.log") in line]
    wait_for_worker(home)
    holder.leave()
    home.wait_until_empty(seconds=40)


def test_a_command_that_only_looks_starts_no_worker_and_keeps_none(home: Home, hold: Hold) -> None:
    looking = hold(with_worker=False)
    assert looking.client.ping()
    working = hold()
    assert working.facts["said"] == []
    wait_for_worker(home)
    assert len(home.processes(SUPERVISOR)) == 1
    working.leave()
    home.wait_until_empty(SUPERVISOR, seconds=40)
    assert looking.client.ping()
    assert "started a worker" not in (home.path / "daemon.log").read_text().partition("started a worker")[2]


def test_a_worker_comes_back_for_the_next_command(home: Home, hold: Hold) -> None:
    assert hold(with_worker=False).client.ping()
    for _ in range(2):
        holder = hold()
        assert holder.client.ping()
        wait_for_worker(home)
        holder.leave()
        home.wait_until_empty(SUPERVISOR, seconds=40)


def test_a_killed_command_leaves_no_worker(home: Home, hold: Hold) -> None:
    holder = hold()
    assert holder.client.ping()
    wait_for_worker(home)
    holder.kill()
    home.wait_until_empty(seconds=40)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_daemon_leaves_no_worker(home: Home, hold: Hold) -> None:
    holder = hold()
    assert holder.client.ping()
    wait_for_worker(home)
    home.daemon().kill()
    home.wait_until_empty(seconds=60)


def test_a_worker_that_cannot_start_fails_the_jobs_with_its_reason(home: Home, hold: Hold) -> None:
    holder = hold(**NO_SUCH_GPU)
    job_id = accept_job(holder)
    failure = wait_until(lambda: failed(holder, job_id), 30, "the job has failed").failure
    assert failure
    assert failure.code == "no_worker"
    assert failure.message.startswith("The embedded worker could not start: ")
    assert "cuda:977" in failure.message
    assert failure.message.endswith(f"Its log: {home.path / 'worker.log'}")


def test_a_job_that_comes_after_the_worker_failed_fails_too(home: Home, hold: Hold) -> None:
    holder = hold(**NO_SUCH_GPU)
    assert holder.client.ping()
    wait_until(lambda: "could not start" in (home.path / "daemon.log").read_text(), 30, "the worker failed")
    job_id = accept_job(holder)
    wait_until(lambda: failed(holder, job_id), 10, "the job has failed")
    assert (home.path / "daemon.log").read_text().count("started a worker") == 1


def test_a_worker_that_could_not_start_is_tried_again_for_the_next_command(home: Home, hold: Hold) -> None:
    assert hold(**NO_SUCH_GPU).client.ping()
    log = home.path / "daemon.log"
    wait_until(lambda: "could not start" in log.read_text(), 30, "the worker failed")
    assert hold(**NO_SUCH_GPU).client.ping()
    wait_until(lambda: log.read_text().count("could not start") == 2, 30, "the worker failed again")


def test_a_worker_that_is_killed_again_and_again_fails_the_jobs(home: Home, hold: Hold) -> None:
    holder = hold()
    assert holder.client.ping()
    log, failure = home.path / "daemon.log", home.path / "worker.failure"
    for number in range(1, 6):
        wait_until(lambda n=number: log.read_text().count("started a worker") == n, 30, "a supervisor")
        wait_for_worker(home)
        assert not failure.exists()
        home.processes(SUPERVISOR)[0].kill()
    wait_until(failure.exists, 30, "it is given up")
    job_id = accept_job(holder)
    told = wait_until(lambda: failed(holder, job_id), 30, "the job has failed").failure
    assert told
    assert "was killed (status -9), 5 times in a row. Its log: " in told.message
    assert told.message == failure.read_text()


def test_a_model_that_cannot_be_preloaded_fails_the_jobs_with_its_name(home: Home, hold: Hold) -> None:
    holder = hold(HUGQUEUE_PRELOAD="fill-mask=/nowhere/at-all")
    job_id = accept_job(holder)
    failure = wait_until(lambda: failed(holder, job_id), 60, "the job has failed").failure
    assert failure
    assert failure.code == "no_worker"
    assert "/nowhere/at-all" in failure.message
