"""helm and the schemas of Kubernetes, where `make chart-tools` or something else has installed them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import ROOT

CHART = ROOT / "deploy" / "helm" / "hugqueue"
#: What an installation must set.
REQUIRED = {"redis": {"password": "abc123"}, "flower": {"basicAuth": "me:secret"}}


def helm(*arguments: str, values: Any = None) -> subprocess.CompletedProcess[str]:
    """Run helm with values; skip the test where there is none."""
    beside = Path(sys.executable).with_name("helm")
    program = str(beside) if beside.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed (`make chart-tools` installs it)")
    command = [program, *arguments, *(() if values is None else ("--values", "-"))]
    text = None if values is None else json.dumps(values)
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def render(values: dict[str, Any], name: str = "nlp") -> list[dict[str, Any]]:
    """Return the objects that the chart makes of values, beside those required."""
    done = helm("template", name, str(CHART), values=merged(REQUIRED, values))
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def refusal(values: dict[str, Any]) -> str:
    """Return why the chart refuses values."""
    done = helm("template", "nlp", str(CHART), values=values)
    assert done.returncode != 0, "the chart takes them"
    return done.stderr


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the values of `base` with those of `more`, level by level."""
    both = {name: merged(base[name], more[name]) for name in base.keys() & more.keys() if isinstance(base[name], dict)}
    return base | more | both
