"""`producer metrics` while a real job runs: scraped by HTTP, and by Prometheus where it is installed."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cli_processes import Queue, running_queue
from tests.support.processes import DEMO_MODEL, ROOT, free_port, wait_until
from tests.support.prometheus_server import dashboard_queries, get, promtool, running_prometheus

CAPITALS = ROOT / "examples" / "capitals.txt"


@contextmanager
def serving(queue: Queue) -> Iterator[int]:
    """Run `producer metrics` as long as the block lasts; give its port."""
    port = free_port()
    process = queue.popen("metrics", "--port", str(port))
    try:
        assert process.stderr and f"http://127.0.0.1:{port}/metrics" in process.stderr.readline()
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "") and "Traceback" not in err


def total(port: int, name: str, **labels: str) -> float:
    """Return the sum of the samples of that name with these labels."""
    families = list(text_string_to_metric_families(get(f"http://127.0.0.1:{port}/metrics")))
    assert name.removesuffix("_total") in {family.name for family in families}
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_the_backlog_of_a_job_becomes_its_outcomes(queue: Queue, tmp_path: Path) -> None:
    texts = ["bad" if number % 10 == 0 else f"text {number}" for number in range(200)]
    source, gate = queue.write("in.txt", *texts), tmp_path / "go"
    with serving(queue) as port:
        before = total(port, "hugqueue_records_total")
        waiting = queue.submit("--task", "test-wait", source, "-p", f"until={gate}", "--chunk-size", "20")
        job = queue.submit("--task", "test-echo", source, "-p", "fail=bad", "--chunk-size", "20", "--priority", "low")
        wait_until(lambda: total(port, "hugqueue_backlog_records", task="test-wait") == 200, 30, "the backlog is shown")
        assert total(port, "hugqueue_backlog_seconds") > 0 and total(port, "hugqueue_jobs") >= 1
        promtool("check", "metrics", input=get(f"http://127.0.0.1:{port}/metrics"))
        gate.touch()
        queue.run("wait", waiting, job, status=3)
        wait_until(lambda: total(port, "hugqueue_jobs_finished_total") == 2, 30, "both jobs are over")
        assert total(port, "hugqueue_backlog_records") == total(port, "hugqueue_backlog_chunks") == 0
        assert total(port, "hugqueue_records_total") - before == 400
        assert total(port, "hugqueue_records_total", code="test_failure", outcome="failed") == 20
        assert total(port, "hugqueue_workers", queue="any", state="ready") == 1
        counts = [queue.status(each)["counts"] for each in (waiting, job)]
        assert total(port, "hugqueue_records_total", outcome="succeeded") == sum(c["succeeded"] for c in counts)


def test_prometheus_answers_every_query_of_the_dashboard(tmp_path: Path) -> None:
    of_workers = free_port()
    with (
        running_queue(tmp_path, "--metrics-port", str(of_workers), "--preload", f"fill-mask={DEMO_MODEL}") as queue,
        serving(queue) as port,
        running_prometheus(tmp_path, port, of_workers) as prometheus,
    ):
        queue.server.client.config_set("maxmemory", "1gb")
        queue.run("submit", "--task", "fill-mask", str(CAPITALS), "--model", str(DEMO_MODEL), "--wait")
        source, gate = queue.write("more.txt", "bad", *["good"] * 99), tmp_path / "go"
        waiting = queue.submit("--task", "test-wait", source, "-p", f"until={gate}")
        wait_until(lambda: prometheus.value("sum(hugqueue_backlog_records)") == 100, 30, "the backlog is scraped")
        failing = queue.submit("--task", "test-echo", source, "-p", "fail=bad")
        gate.touch()
        queue.run("wait", waiting, failing, status=3)
        wait_until(lambda: prometheus.value("sum(hugqueue_records_total)") == 66 + 200, 30, "the outcomes are scraped")
        assert wait_until(lambda: prometheus.value("sum(hugqueue_backlog_records)") == 0, 30, "the backlog is gone")
        silent = {"Fallbacks to a slower path, in 5 minutes A"}  # there were none
        for title, query in {title: q for title, q in dashboard_queries().items() if title not in silent}.items():
            wait_until(lambda query=query: prometheus.query(query), 30, f"there is data for {title}: {query}")
        assert {rule["health"] for rule in prometheus.rules()} == {"ok"}


def test_a_port_that_is_in_use_is_said(queue: Queue) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = queue.run("metrics", "--port", str(port), status=2)
    assert f"Metrics cannot be served at 127.0.0.1:{port}: Address already in use." in done.stderr


@pytest.mark.parametrize("address", ["192.0.2.1", "no such host"])
def test_an_address_that_is_not_of_this_machine_is_said(queue: Queue, address: str) -> None:
    done = queue.run("metrics", "--port", str(free_port()), "--address", address, status=2)
    assert f"Metrics cannot be served at {address}:" in done.stderr
