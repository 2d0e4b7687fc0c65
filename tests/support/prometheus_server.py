"""Prometheus and promtool, where Debian's package `prometheus` is installed."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import ROOT, free_port, wait_until

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "hugqueue.json"


def promtool(*arguments: str, input: str | None = None) -> None:
    """Run promtool, which must find nothing wrong; skip the test where there is none."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: the package prometheus)")
    done = subprocess.run(
        ["promtool", *arguments], input=input, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard_queries() -> dict[str, str]:
    """Return title of a panel and letter -> query, with a range in place of Grafana's variable."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "1m")
        for panel in panels
        for target in panel.get("targets", ())
    }


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


class Prometheus:
    """A Prometheus that scrapes some ports of this machine every second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, query: str) -> list[dict[str, Any]]:
        answer = json.loads(get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def value(self, query: str) -> float | None:
        """Return the only value of a query, None if there is none yet."""
        found = self.query(query)
        return float(found[0]["value"][1]) if found else None

    def rules(self) -> list[dict[str, Any]]:
        groups = json.loads(get(f"{self.url}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def running_prometheus(directory: Path, *ports: int) -> Iterator[Prometheus]:
    """Run Prometheus with our alert rules as long as the block lasts; skip the test where there is none."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: the package prometheus)")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "hugqueue", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        ],
    }
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={directory / 'data'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (directory / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    found = Prometheus(f"http://127.0.0.1:{port}")

    def answers() -> bool:
        try:
            return found.value("sum(up)") == len(ports)
        except OSError:
            return False

    try:
        wait_until(answers, 60, "Prometheus has scraped all ports")
        yield found
    finally:
        process.kill()
        process.wait()
