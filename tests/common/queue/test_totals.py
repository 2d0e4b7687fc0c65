"""What a queue has done so far, as its own steps count it."""

from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.queue.totals import Totals, read_totals
from common.records import Counts
from common.redis import keys
from tests.support.ledger_jobs import commit, die, leased, make_job, run_all
from tests.support.processes import RedisServer


def test_outcomes_are_counted_by_error_code_once(store: JobStore, ledger: Ledger) -> None:
    held = leased(ledger, make_job(store, ledger, 1))
    for _ in range(2):  # as if the first answer had been lost
        ledger.commit(held, Counts(5, 4), {}, codes={"too_long": 2, "no_mask": 1}, seconds=1.5)
    found = read_totals(ledger.client)
    assert (found.succeeded, found.failed) == (5, {"too_long": 2, "no_mask": 1, "other": 1})


def test_a_retried_record_counts_again(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 2)
    run_all(ledger, job_id, failed=(1,))
    ledger.retry(job_id)
    run_all(ledger, job_id)
    assert read_totals(ledger.client) == Totals(2, {"other": 1}, {"completed": 2})


def test_jobs_count_when_they_end_and_leases_when_they_are_lost(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 2)
    leased(ledger, job_id)
    die(ledger, job_id)
    ledger.cancel(job_id)
    run_all(ledger, make_job(store, ledger, 1))
    found = read_totals(ledger.client)
    assert (found.jobs, found.leases_lost) == ({"cancelled": 1, "completed": 1}, 1)


def test_too_many_error_codes_count_as_other(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 30)
    for chunk in range(30):
        codes = {f"code {chunk} {number}\n" + "x" * 100: 1 for number in range(10)}
        ledger.commit(leased(ledger, job_id), Counts(0, 10), {}, codes=codes)
    failed = read_totals(ledger.client).failed
    assert len(failed) <= 200 and sum(failed.values()) == 300 and failed["other"] > 90
    assert all(len(code) <= 64 and "\n" not in code for code in failed)


def test_forged_totals_stop_no_job(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    server.client.set(keys.TOTALS, "not a hash")
    job_id = make_job(store, ledger, 1)
    assert commit(ledger, leased(ledger, job_id), failed=1) == "committed"
    assert store.job(job_id).status == "completed"


def test_what_is_not_a_total_is_left_out() -> None:
    raw = {b"records:succeeded": b"7", b"records:failed:a": b"x", b"jobs:\xff": b"-1", b"leases_lost": b"9" * 30}
    assert Totals.decode(raw) == Totals(7, {"a": 0}, {"\N{REPLACEMENT CHARACTER}": 0}, 0)


def test_the_totals_go_with_the_last_job(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    first, second = make_job(store, ledger, 1), make_job(store, ledger, 1)
    for job_id in (first, second):
        run_all(ledger, job_id)
    store.delete(first)
    assert read_totals(ledger.client).succeeded == 2
    store.delete(second)
    assert server.client.keys("*") == []
