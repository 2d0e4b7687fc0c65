"""The network between Redis and others is cut without a close: nothing hangs, nothing is lost, little is repeated."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1
from pathlib import Path

import pytest

from common.jobs import JobSpec, new_job_id
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.redis.client import connect
from common.redis.scripts import script_text
from tests.support.fault_jobs import LONG, Batch
from tests.support.processes import RedisServer, Shell, Workers, wait_until
from tests.support.tcp_proxy import Proxy
from tests.support.waiting_producers import attempts, expect_refused, waiting

StartWorkers = Callable[..., Workers]
NewBatch = Callable[..., Batch]

#: Records that three slots run at once: what may run twice when their worker is cut off.
IN_HAND = 30


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A way to `server` that can be cut."""
    started = Proxy(server.port)
    yield started
    started.close()


def digest(step: str) -> bytes:
    """What Redis calls the script of a step of the ledger."""
    return sha1(script_text(step).encode()).hexdigest().encode()


def test_a_disconnected_worker_and_a_waiting_producer_continue_afterwards(
    shell: Shell, proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    far = Shell(shell.environ | {"REDIS_URL": proxy.url}, tmp_path)
    workers = start_workers(REDIS_URL=proxy.url)
    before = workers.celery().pid, workers.device().pid
    with waiting(new_batch(100, seconds=0.2), tmp_path, far) as producer:
        producer.batch.wait_for_records(20)
        proxy.freeze()
        expect_refused(far, producer.batch, "does not answer")
        producer.wait_until_it_says("does not answer. Waiting for it.")  # nine seconds, three times the lease
        proxy.thaw()
        producer.finish()
    assert producer.batch.runs_twice() == 0
    assert (workers.celery().pid, workers.device().pid) == before


def test_chunks_of_a_disconnected_worker_run_elsewhere_exactly_once(
    proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    far = start_workers(REDIS_URL=proxy.url)
    batch = new_batch(60, seconds=0, until=go).submit()
    wait_until(lambda: batch.leased() == 3, LONG, "it works on three chunks")
    proxy.freeze()
    near = start_workers()
    wait_until(lambda: batch.job.status == "running" and sum(attempts(batch).values()) >= 6, LONG, "both are at work")
    go.touch()
    batch.finish()
    assert batch.runs_twice() <= IN_HAND
    near.kill()
    proxy.thaw()
    new_batch(60).submit().finish()
    wait_until(lambda: "released: lost" in far.text() or "dropped" in far.text() or "double" in far.text(), LONG)
    batch.check()


def test_another_worker_takes_over_from_one_that_is_cut_off_for_good(
    proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch
) -> None:
    start_workers(REDIS_URL=proxy.url)
    start_workers()
    batch = new_batch(200, seconds=0.2).submit()
    batch.wait_for_records(20)
    proxy.freeze()
    batch.finish()
    assert batch.runs_twice() <= IN_HAND


def test_a_commit_that_was_done_but_never_answered_counts_once(
    server: RedisServer, proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    start_workers(REDIS_URL=proxy.url)
    new_batch(10).submit().finish()  # from here on Redis knows the script by its digest
    batch = new_batch(10, until=go).submit()
    wait_until(batch.leased, LONG, "its only chunk is at work")
    proxy.hold_answers_after(digest("commit"))
    go.touch()
    wait_until(lambda: batch.job.status.finished, LONG, "the commit has arrived")
    assert proxy.holds_answers
    server.kill()
    server.start()
    proxy.thaw()
    batch.finish()
    new_batch(30).submit().finish()
    batch.check()
    assert set(batch.runs().values()) == {1}


def test_a_job_is_accepted_when_the_reply_was_lost_and_it_already_runs(server: RedisServer, proxy: Proxy) -> None:
    near, far = Ledger(server.client, 3), Ledger(connect(proxy.url), 3)
    store = JobStore(server.client, result_ttl=100)
    first, second = (JobSpec(id=new_job_id(), task="test-echo") for _ in range(2))
    for spec in (first, second):
        store.create(spec)
    near.accept(first.id, 1, 10)  # from here on Redis knows the script by its digest
    proxy.hold_answers_after(digest("accept_job"))
    with ThreadPoolExecutor() as pool:
        sealing = pool.submit(far.accept, second.id, 1, 10)
        wait_until(lambda: store.job(second.id).status == "queued", LONG, "it has arrived")
        [ticket] = near.issue_tickets(second.id, 1)
        assert near.lease(second.id, ticket, "worker", 1)
        proxy.thaw()
        sealing.result(LONG)
    assert store.job(second.id).status == "running"


@pytest.mark.faults
@pytest.mark.parametrize("key", [(), ("--idempotency-key", "nightly")], ids=["without a key", "with a key"])
def test_a_submit_whose_acceptance_has_no_reply_is_run_once(
    server: RedisServer, shell: Shell, proxy: Proxy, start_workers: StartWorkers, new_batch: NewBatch, tmp_path: Path,
    key: tuple[str, ...],
) -> None:  # fmt: skip
    start_workers()
    new_batch(10).submit().finish()  # from here on Redis knows the script by its digest
    batch = new_batch(30)
    far = Shell(shell.environ | {"REDIS_URL": proxy.url}, tmp_path)
    known = {job.id for job in batch.store.each_job()}
    proxy.hold_answers_after(digest("accept_job"))
    said = far.run("submit", *batch.arguments(), *key, status=1)
    [batch.id] = {job.id for job in batch.store.each_job()} - known
    assert proxy.holds_answers and said.stdout == ""
    assert f"`producer status {batch.id}` shows that" in said.stderr
    proxy.thaw()
    if key:
        again = far.run("submit", *batch.arguments(), *key)
        assert (again.stdout.strip(), "belongs to job" in again.stderr) == (batch.id, True)
    batch.finish()
    assert set(batch.runs().values()) == {1}
