"""The files in `deploy/`: alert rules, the dashboard, and the configuration of the compose file's Prometheus."""

import json
import re
from pathlib import Path

import pytest
import yaml

from common.queue.jobs import JobStore
from producer.metrics.queue_metrics import QueueMetrics
from tests.support.processes import ROOT, RedisServer
from tests.support.prometheus_server import DASHBOARD, RULES, dashboard_queries, promtool
from workers.worker_metrics import WorkerMetrics

NAME = re.compile(r"\bhugqueue_\w+")
CONFIGURATION = RULES.with_name("prometheus.yml")


def rules() -> dict[str, str]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


@pytest.fixture
def names(server: RedisServer) -> set[str]:
    """The names of all samples."""
    metrics = [*QueueMetrics(JobStore(server.client, 100)).read(), *WorkerMetrics(server.client, []).read()]
    found = {f"{m.name}_total" if m.type == "counter" else m.name for m in metrics}
    assert len(found) > 10
    return found


def test_the_alert_rules_are_valid_and_raised_when_they_should_be() -> None:
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", str(RULES.with_name("alerts.test.yml")))


def test_every_alert_is_tested_raised_and_not_raised() -> None:
    tests = yaml.safe_load(RULES.with_name("alerts.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for raised in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is raised} == rules().keys()


def test_alerts_and_dashboard_name_existing_metrics_only(names: set[str]) -> None:
    for title, query in (rules() | dashboard_queries()).items():
        used = set(NAME.findall(query))
        assert used and used <= names, f"{title}: {used - names}"


def test_every_metric_is_on_the_dashboard_and_in_the_documentation(names: set[str]) -> None:
    shown = {name for query in dashboard_queries().values() for name in NAME.findall(query)}
    told = set(NAME.findall((ROOT / "docs" / "monitoring.md").read_text()))
    assert names - shown == {"hugqueue_up", "hugqueue_worker_info", "hugqueue_worker_model_bytes"}
    assert told == names


def test_the_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    recorded = [{"record": f"query:{n}", "expr": expr} for n, expr in enumerate(dashboard_queries().values())]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", str(path))


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken and all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_prometheus_of_the_compose_file_is_configured_for_its_containers() -> None:
    promtool("check", "config", str(CONFIGURATION))
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    jobs = {job["job_name"]: job for job in yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]}
    [target] = jobs["hugqueue"]["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert services[name]["command"] == f"metrics --address 0.0.0.0 --port {port}"
    [workers] = jobs["hugqueue-workers"]["dns_sd_configs"]
    for name in workers["names"]:
        assert services[name]["command"].endswith(f"--metrics-address 0.0.0.0 --metrics-port {workers['port']}"), name


def test_grafana_of_the_compose_file_finds_prometheus_and_the_dashboard() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    [provider] = yaml.safe_load((folder / "dashboards" / "hugqueue.yml").read_text())["providers"]
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert (ROOT / "deploy" / "grafana" / "dashboards" / DASHBOARD.name).exists()
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
