"""The metrics of a queue: all that its Redis tells, in a few round trips."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import redis
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.jobs import QUEUES, JobStatus
from common.metrics_server import label
from common.queue.heartbeats import live_workers
from common.queue.jobs import JobStore
from common.queue.totals import Totals, read_totals
from producer.metrics.backlog import Backlog
from producer.metrics.unfinished import Group, UnfinishedJob, UnfinishedJobs

logger = logging.getLogger(__name__)

_WORKER_STATES = ("starting", "ready", "stopping")


class QueueMetrics:
    """Reads the metrics of a queue; not thread-safe (`common.metrics_server.CachedCollector` is)."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._jobs = UnfinishedJobs(store.client)
        self._backlog = Backlog()
        self._was_up = True

    def read(self) -> list[Metric]:
        """Return all metrics; while Redis is away, only that it is."""
        try:
            metrics = list(self._read())
        except redis.RedisError as error:
            if self._was_up:
                logger.warning("Redis cannot be read: %s", error)
            self._was_up = False
            return [_up(0)]
        self._was_up = True
        return [_up(1), *metrics]

    def _read(self) -> Iterator[Metric]:
        jobs = self._jobs.refresh()
        yield from self._backlog_metrics(jobs)
        yield from _job_metrics(jobs, self._jobs.unread, self._store.now())
        yield from _total_metrics(read_totals(self._store.client))
        yield self._worker_metric()
        yield from self._memory_metrics()

    def _backlog_metrics(self, jobs: Sequence[UnfinishedJob]) -> Iterator[Metric]:
        records = GaugeMetricFamily("hugqueue_backlog_records", "Records without an outcome.", labels=Group._fields)
        chunks = GaugeMetricFamily("hugqueue_backlog_chunks", "Chunks that are not done.", labels=Group._fields)
        text = "Seconds that one device would need for these records, at the speed of its last jobs of that kind."
        seconds = GaugeMetricFamily("hugqueue_backlog_seconds", text, labels=Group._fields)
        for group, left in self._backlog.update(jobs).items():
            records.add_metric(group, left.records)
            chunks.add_metric(group, left.chunks)
            seconds.add_metric(group, left.seconds)
        yield from (records, chunks, seconds)

    def _worker_metric(self) -> Metric:
        text = "Live workers that serve a queue; each counts for every queue that it serves."
        family = GaugeMetricFamily("hugqueue_workers", text, labels=("queue", "state"))
        found = Counter((queue, worker.state) for worker in live_workers(self._store.client) for queue in worker.queues)
        for queue in QUEUES:
            for state in _WORKER_STATES:
                family.add_metric((queue, state), found[queue, state])
        return family

    def _memory_metrics(self) -> Iterator[Metric]:
        try:
            memory = self._store.client.info("memory")
        except redis.exceptions.NoPermissionError:
            return
        used, limit = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
        yield GaugeMetricFamily("hugqueue_redis_memory_bytes", "Memory that Redis uses.", used)
        yield GaugeMetricFamily("hugqueue_redis_memory_limit_bytes", "Memory that Redis may use; 0: no limit.", limit)


def _up(value: int) -> Metric:
    return GaugeMetricFamily("hugqueue_up", "Whether Redis could be read: 1 or 0.", value)


def _job_metrics(jobs: Sequence[UnfinishedJob], unread: int, now: float) -> Iterator[Metric]:
    statuses = GaugeMetricFamily("hugqueue_jobs", "Unfinished jobs by status.", labels=("status",))
    count = Counter(job.status for job in jobs)
    for status in JobStatus:
        if not status.finished:
            statuses.add_metric((status,), count[status])
    text = "Age of the oldest unfinished job that is not blocked."
    oldest = GaugeMetricFamily("hugqueue_oldest_job_seconds", text, labels=("queue",))
    created = dict.fromkeys(QUEUES, now)
    for job in jobs:
        if job.status is not JobStatus.BLOCKED:
            created[job.group.queue] = min(created[job.group.queue], job.created_at)
    for queue, since in created.items():
        oldest.add_metric((queue,), now - since)
    text = "Unfinished jobs that are not among these metrics yet: there are too many to read at once."
    yield from (statuses, oldest, GaugeMetricFamily("hugqueue_jobs_unread", text, unread))


def _total_metrics(totals: Totals) -> Iterator[Metric]:
    text = "Outcomes of records, with the error code of those that failed; a record that is retried counts again."
    records = CounterMetricFamily("hugqueue_records", text, labels=("outcome", "code"))
    records.add_metric(("succeeded", ""), totals.succeeded)
    for code, number in sorted(totals.failed.items()):
        records.add_metric(("failed", label(code)), number)
    text = "Jobs that ended, by status; one that is retried ends again."
    ended = CounterMetricFamily("hugqueue_jobs_finished", text, labels=("status",))
    for status in JobStatus:
        if status.finished:
            ended.add_metric((status,), totals.jobs.get(status, 0))
    text = "Leases that expired: their workers died, or lost their connection to Redis."
    yield from (records, ended, CounterMetricFamily("hugqueue_leases_lost", text, totals.leases_lost))
