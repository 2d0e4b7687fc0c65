"""Metrics of workers: what heartbeats tell of them, and a real worker scraped by HTTP."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from common.metrics_server import CachedCollector
from common.queue.heartbeats import Heartbeat, send_heartbeat
from tests.support.processes import DEMO_MODEL, ROOT, RedisServer, Shell, Workers, free_port, wait_until
from tests.support.prometheus_server import get, promtool
from workers.worker_metrics import WorkerMetrics

Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """Return (name, value of label, ...) -> value, without the names of workers; the labels are sorted by name."""
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(s.name, *(v for k, v in s.labels.items() if k != "worker")): s.value for s in found}


def scrape(metrics: WorkerMetrics) -> Samples:
    registry = CollectorRegistry()
    registry.register(CachedCollector(metrics.read))
    return samples(generate_latest(registry).decode())


def heartbeat(name: str, **more: object) -> Heartbeat:
    return Heartbeat(name, "cuda:0", "a GPU", ("any",), slots=3, pid=1, host="here", started_at=1.0, **more)


def test_only_the_workers_of_one_supervisor_are_told(server: RedisServer) -> None:
    model = {"task": "ner", "model": "org/m", "bytes": 7, "batch_tokens": 4096}
    stages = {"tokenize": 1.5, "forward": 3.0, "encode": 0.5, "commit": 0.25}
    more = {
        "models": (model, model),
        "stage_seconds": stages,
        "tokens_done": 900,
        "records_done": 90,
        "fallbacks": {"packing": 2},
    }
    send_heartbeat(server.client, heartbeat("a", device_memory_bytes=5, device_memory_limit_bytes=80, **more))
    send_heartbeat(server.client, heartbeat("b", records_done=1000))
    found = scrape(WorkerMetrics(server.client, ["a"]))
    assert found["hugqueue_worker_info", "cuda:0", "a GPU", "ready", ""] == 1
    assert found["hugqueue_worker_records_total",] == 90 and found["hugqueue_worker_tokens_total",] == 900
    assert found["hugqueue_worker_batch_tokens", "org/m", "ner"] == 4096
    assert found["hugqueue_worker_model_bytes", "org/m", "ner"] == 7
    assert (
        found["hugqueue_worker_device_memory_limit_bytes",] == 80
        and found["hugqueue_worker_fallbacks_total", "packing"] == 2
    )
    assert {stage: found["hugqueue_worker_stage_seconds_total", stage] for stage in stages} == stages


def test_what_a_forged_heartbeat_tells_is_bounded(server: RedisServer) -> None:
    models = tuple({"task": ["x" * 1000, number], "model": "m" * 500, "bytes": 10**400} for number in range(100))
    fallbacks = {f"path {number}\n": 1 for number in range(100)}
    send_heartbeat(server.client, heartbeat("a", models=models, fallbacks=fallbacks))
    found = scrape(WorkerMetrics(server.client, ["a"]))
    assert len(found) < 100 and all(len(word) <= 120 for key in found for word in key)


def test_without_redis_there_is_no_worker(server: RedisServer) -> None:
    server.kill()
    assert scrape(WorkerMetrics(server.client, ["a"])) == {}


def test_a_real_worker_tells_what_a_job_took(start_workers: Callable[..., Workers], shell: Shell) -> None:
    port = free_port()
    start_workers("--metrics-port", str(port), "--preload", f"fill-mask={DEMO_MODEL}")
    capitals = str(ROOT / "examples" / "capitals.txt")
    shell.run("submit", "--task", "fill-mask", capitals, "--model", str(DEMO_MODEL), "--wait")
    address = f"http://127.0.0.1:{port}/metrics"
    wait_until(
        lambda: samples(get(address)).get(("hugqueue_worker_records_total",)) == 66, 30, "the heartbeat tells it"
    )
    promtool("check", "metrics", input=get(address))
    found = samples(get(address))
    assert found["hugqueue_worker_tokens_total",] > 66 and found["hugqueue_worker_memory_bytes",] > 10**7
    for stage in ("tokenize", "forward", "encode", "commit"):
        assert 0 < found["hugqueue_worker_stage_seconds_total", stage] < 60, stage
    [tokens] = [value for key, value in found.items() if key[0] == "hugqueue_worker_batch_tokens"]
    assert tokens >= 1


def test_a_port_that_is_in_use_ends_the_start(start_workers: Callable[..., Workers], server: RedisServer) -> None:
    workers = start_workers("--metrics-port", str(server.port), ready=False)
    assert workers.process and workers.process.wait(60) == 2
    assert f"Metrics cannot be served at 127.0.0.1:{server.port}: Address already in use." in workers.text()
