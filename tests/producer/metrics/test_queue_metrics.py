"""The metrics of a queue, as its Redis tells them; workers are played."""

import time

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from common.jobs import JobSpec, new_job_id
from common.metrics_server import CachedCollector
from common.payloads.codec import encode_records
from common.queue.heartbeats import Heartbeat, send_heartbeat
from common.queue.jobs import JobStore
from common.queue.ledger import Ledger
from common.records import Counts, Record
from common.redis import keys
from common.redis.keys import JobKeys
from producer.metrics import backlog, unfinished
from producer.metrics.queue_metrics import QueueMetrics
from tests.support.ledger_jobs import commit, die, leased, make_job, run_all
from tests.support.processes import RedisServer

Samples = dict[tuple[str, ...], float]


def scrape(metrics: QueueMetrics) -> Samples:
    """Return (name, value of label, ...) -> value of each sample; the labels are sorted by name."""
    registry = CollectorRegistry()
    registry.register(CachedCollector(metrics.read))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def submit(store: JobStore, ledger: Ledger, records: int, **options: str) -> str:
    """Submit a job of two chunks."""
    spec = JobSpec(new_job_id(), **{"task": "embedding", "model": "org/m"} | options, created_at=time.time() - 60)
    store.create(spec)
    for number in range(2):
        store.payloads(spec).add_records(number, encode_records([Record(0, "text")]))
    ledger.accept(spec.id, 2, records)
    return spec.id


def heartbeat(name: str, *queues: str, state: str = "ready") -> Heartbeat:
    return Heartbeat(name, "cpu", "a CPU", queues, slots=3, pid=1, host="here", started_at=1.0, state=state)


def test_an_empty_queue_has_all_metrics_that_alerts_need(store: JobStore) -> None:
    found = scrape(QueueMetrics(store))
    assert found["hugqueue_up",] == 1
    assert found["hugqueue_records_total", "", "succeeded"] == found["hugqueue_leases_lost_total",] == 0
    assert found["hugqueue_workers", "gpu", "ready"] == found["hugqueue_oldest_job_seconds", "any"] == 0
    assert found["hugqueue_jobs", "running"] == found["hugqueue_jobs_finished_total", "failed"] == 0
    assert found["hugqueue_redis_memory_bytes",] > 100_000 and found["hugqueue_redis_memory_limit_bytes",] == 0


def test_the_backlog_falls_to_zero_and_its_outcomes_are_counted(store: JobStore, ledger: Ledger) -> None:
    metrics, group = QueueMetrics(store), ("org/m", "high", "any", "embedding")
    job_id = submit(store, ledger, 100, priority="high")
    found = scrape(metrics)
    assert found["hugqueue_backlog_records", *group] == 100 and found["hugqueue_backlog_chunks", *group] == 2
    assert found["hugqueue_backlog_seconds", *group] == 100 * backlog.ASSUMED_SECONDS
    assert 59 < found["hugqueue_oldest_job_seconds", "any"] < 90 and found["hugqueue_jobs", "queued"] == 1
    ledger.commit(leased(ledger, job_id), Counts(58, 2), {}, seconds=30.0, codes={"too_long": 2})
    found = scrape(metrics)
    assert found["hugqueue_backlog_records", *group] == 40 and found["hugqueue_backlog_chunks", *group] == 1
    assert found["hugqueue_backlog_seconds", *group] == 20
    ledger.commit(leased(ledger, job_id), Counts(40), {}, seconds=20.0)
    found = scrape(metrics)
    assert {found[f"hugqueue_backlog_{name}", *group] for name in ("records", "chunks", "seconds")} == {0}
    outcomes = {labels[1:]: value for labels, value in found.items() if labels[0] == "hugqueue_records_total"}
    assert outcomes == {("", "succeeded"): 98, ("too_long", "failed"): 2}
    assert found["hugqueue_oldest_job_seconds", "any"] == found["hugqueue_jobs", "running"] == 0


def test_the_speed_of_a_model_is_remembered_for_its_next_job(store: JobStore, ledger: Ledger) -> None:
    metrics = QueueMetrics(store)
    ledger.commit(leased(ledger, submit(store, ledger, 10)), Counts(5), {}, seconds=10.0)
    scrape(metrics)
    submit(store, ledger, 100, priority="low")
    assert scrape(metrics)["hugqueue_backlog_seconds", "org/m", "low", "any", "embedding"] == 200


def test_a_retry_is_a_backlog_of_what_failed(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 3)
    run_all(ledger, job_id, failed=(1,))
    ledger.retry(job_id)
    group = ("", "normal", "any", "test-echo")
    found = scrape(QueueMetrics(store))
    assert found["hugqueue_backlog_records", *group] == found["hugqueue_backlog_chunks", *group] == 1
    assert commit(ledger, leased(ledger, job_id)) == "committed"
    assert scrape(QueueMetrics(store))["hugqueue_jobs_finished_total", "completed"] == 2


def test_a_cancelled_job_and_a_lost_lease_are_told(store: JobStore, ledger: Ledger) -> None:
    job_id = make_job(store, ledger, 3)
    leased(ledger, job_id)
    die(ledger, job_id)
    leased(ledger, job_id)
    ledger.cancel(job_id)
    found = scrape(QueueMetrics(store))
    assert found["hugqueue_jobs", "cancelling"] == found["hugqueue_leases_lost_total",] == 1
    assert ("hugqueue_backlog_records", "", "normal", "any", "test-echo") not in found


def test_a_blocked_job_is_counted_and_is_no_backlog(store: JobStore, ledger: Ledger) -> None:
    make_job(store, ledger, after=(first := make_job(store, ledger, 1),))
    group = ("", "normal", "any", "test-echo")
    found = scrape(QueueMetrics(store))
    assert found["hugqueue_jobs", "blocked"] == found["hugqueue_backlog_records", *group] == 1
    run_all(ledger, first)
    found = scrape(QueueMetrics(store))
    assert (found["hugqueue_jobs", "blocked"], found["hugqueue_backlog_records", *group]) == (0, 3)


def test_workers_count_for_every_queue_that_they_serve(store: JobStore, server: RedisServer) -> None:
    for beat in (heartbeat("a", "any", "cpu"), heartbeat("b", "any", "gpu", state="starting")):
        send_heartbeat(server.client, beat)
    found = scrape(QueueMetrics(store))
    told = {key[1:]: value for key, value in found.items() if key[0] == "hugqueue_workers" and value}
    assert told == {("any", "ready"): 1, ("cpu", "ready"): 1, ("any", "starting"): 1, ("gpu", "starting"): 1}


def test_the_number_and_the_length_of_labels_are_bounded(store: JobStore, ledger: Ledger, monkeypatch) -> None:
    monkeypatch.setattr(backlog, "MAX_GROUPS", 5)
    metrics = QueueMetrics(store)
    for number in range(8):
        submit(store, ledger, 10, model=f"org/{number}-" + "m" * 400)
    found = scrape(metrics)
    groups = [key for key in found if key[0] == "hugqueue_backlog_records"]
    assert len(groups) == 6 and all(len(value) <= 120 for key in groups for value in key)
    assert found["hugqueue_backlog_records", "other", "normal", "any", "other"] == 30
    assert sum(found[key] for key in groups) == 80


def test_one_scrape_reads_a_bounded_number_of_jobs(store: JobStore, ledger: Ledger, monkeypatch) -> None:
    monkeypatch.setattr(unfinished, "MAX_READ", 2)
    metrics = QueueMetrics(store)
    for _ in range(5):
        submit(store, ledger, 10)
    told = [scrape(metrics) for _ in range(3)]
    group = ("org/m", "normal", "any", "embedding")
    assert [found["hugqueue_jobs_unread",] for found in told] == [3, 1, 0]
    assert [found["hugqueue_backlog_records", *group] for found in told] == [20, 40, 50]


def test_a_scrape_costs_a_few_round_trips_whatever_the_number_of_jobs(store: JobStore, ledger: Ledger) -> None:
    for _ in range(30):
        submit(store, ledger, 10)
    metrics, client = QueueMetrics(store), store.client
    scrape(metrics)
    before = client.info("stats")["total_reads_processed"]
    scrape(metrics)
    assert client.info("stats")["total_reads_processed"] - before <= 10


def test_two_scrapers_cost_no_more_than_one(store: JobStore) -> None:
    calls: list[int] = []
    collector = CachedCollector(lambda: calls.append(1) or QueueMetrics(store).read())
    assert list(collector.collect()) == list(collector.collect())
    assert len(calls) == 1


def test_what_is_no_job_is_left_out(store: JobStore, ledger: Ledger, server: RedisServer) -> None:
    good, broken, foreign, other = (submit(store, ledger, 10) for _ in range(4))
    server.client.hset(JobKeys.of(broken).job, "records", "many")
    server.client.set(JobKeys.of("0" * 12).job, "a text")
    server.client.hset(JobKeys.of(foreign).job, "spec", server.client.hget(JobKeys.of(good).job, "spec"))
    server.client.delete(JobKeys.of(other).commits)
    server.client.set(JobKeys.of(other).commits, "a text")
    server.client.sadd(keys.ACTIVE, "0" * 12, "x" * 1000, b"\xff", "1" * 12)
    found = scrape(QueueMetrics(store))
    assert found["hugqueue_backlog_records", "org/m", "normal", "any", "embedding"] == 10
    assert found["hugqueue_jobs_unread",] == 0


def test_without_redis_only_that_is_told(store: JobStore, server: RedisServer) -> None:
    metrics = QueueMetrics(store)
    assert len(scrape(metrics)) > 10
    server.kill()
    assert scrape(metrics) == {("hugqueue_up",): 0}
    server.start()
    assert scrape(metrics)["hugqueue_up",] == 1
