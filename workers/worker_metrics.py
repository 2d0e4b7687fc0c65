"""The metrics of the workers of one supervisor, as their heartbeats tell them: one port serves all of them."""

from collections.abc import Iterator, Sequence

import redis
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.jobs import short_model
from common.metrics_server import label
from common.queue.heartbeats import Heartbeat, live_workers

#: Loaded models and fast paths that are told of each worker.
_MAX_EACH = 50


class WorkerMetrics:
    """Reads the metrics of some workers.

    Args:
        client: of the Redis that has their heartbeats.
        names: of the workers.
    """

    def __init__(self, client: "redis.Redis", names: Sequence[str]) -> None:
        self._client = client
        self._names = frozenset(names)

    def read(self) -> list[Metric]:
        """Return the metrics of those that are alive; none while Redis is away."""
        try:
            found = [worker for worker in live_workers(self._client) if worker.name in self._names]
        except redis.RedisError:
            found = []
        return [
            _info(found),
            *_numbers(found),
            *_models(found),
            _stages(found),
            _fallbacks(found),
        ]


def _info(found: Sequence[Heartbeat]) -> Metric:
    labels = ("worker", "device", "device_name", "state", "version")
    family = GaugeMetricFamily("hugqueue_worker_info", "A live worker; the value is 1.", labels=labels)
    for beat in found:
        family.add_metric([label(getattr(beat, name)) for name in ("name", *labels[1:])], 1)
    return family


def _numbers(found: Sequence[Heartbeat]) -> Iterator[Metric]:
    gauges = {
        "memory_bytes": "Resident memory of a worker's two processes.",
        "device_memory_bytes": "Memory of its device in use, by any process, when models last came or went.",
        "device_memory_limit_bytes": "Memory of its device.",
    }
    for name, text in gauges.items():
        gauge = GaugeMetricFamily(f"hugqueue_worker_{name}", text, labels=("worker",))
        for beat in found:
            gauge.add_metric((label(beat.name),), getattr(beat, name))
        yield gauge
    counters = {"records": "Records that a worker has done.", "tokens": "Tokens that it has run, padding included."}
    for name, text in counters.items():
        counter = CounterMetricFamily(f"hugqueue_worker_{name}", text, labels=("worker",))
        for beat in found:
            counter.add_metric((label(beat.name),), getattr(beat, f"{name}_done"))
        yield counter


def _models(found: Sequence[Heartbeat]) -> Iterator[Metric]:
    names = ("worker", "task", "model")
    size = GaugeMetricFamily("hugqueue_worker_model_bytes", "Device memory of a loaded model.", labels=names)
    batch = GaugeMetricFamily("hugqueue_worker_batch_tokens", "Tokens that its batches hold at most.", labels=names)
    for beat in found:
        told: set[tuple[str, ...]] = set()
        for model in beat.models[-_MAX_EACH:]:
            labels = (label(beat.name), label(str(model.get("task"))), label(short_model(_text(model.get("model")))))
            if labels in told:  # loaded twice, with other parameters: one sample has its labels
                continue
            told.add(labels)
            for family, value in ((size, model.get("bytes")), (batch, model.get("batch_tokens"))):
                if isinstance(value, int | float) and abs(value) < 1e18:
                    family.add_metric(labels, value)
    yield from (size, batch)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _stages(found: Sequence[Heartbeat]) -> Metric:
    text = "Seconds in the stages of chunks: tokenize, forward, encode, commit; they overlap."
    family = CounterMetricFamily("hugqueue_worker_stage_seconds", text, labels=("worker", "stage"))
    for beat in found:
        for stage in ("tokenize", "forward", "encode", "commit"):
            family.add_metric((label(beat.name), stage), beat.stage_seconds.get(stage, 0.0))
    return family


def _fallbacks(found: Sequence[Heartbeat]) -> Metric:
    text = "How often a fast path failed and a slower one ran instead."
    family = CounterMetricFamily("hugqueue_worker_fallbacks", text, labels=("worker", "path"))
    for beat in found:
        for path, number in sorted(beat.fallbacks.items())[:_MAX_EACH]:
            family.add_metric((label(beat.name), label(path)), number)
    return family
