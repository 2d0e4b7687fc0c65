"""`celery inspect` and `celery control` on real workers, as their users type them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.celery_apps import CELERY
from tests.support.processes import Workers

StartWorkers = Callable[..., Workers]


def test_celery_inspects_workers_and_shuts_them_down_for_good(
    start_workers: StartWorkers, environ: dict[str, str], tmp_path: Path
) -> None:
    def celery(*arguments: str, app: str = "workers.app") -> str:
        command = [CELERY, "-A", app, *arguments]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    workers = start_workers()
    [(name, answer)] = json.loads(celery("inspect", "ping", "--json")).items()
    assert answer == {"ok": "pong"}
    assert json.loads(celery("inspect", "active", "--json")) == {name: []}
    assert json.loads(celery("inspect", "stats", "--json", app="hugqueue"))[name]["pool"]["max-concurrency"] == 3
    celery("control", "shutdown", "--destination", name)
    assert workers.process
    assert workers.process.wait(60) == 0
    assert f"worker {name} was shut down; it is not started again" in workers.text()
