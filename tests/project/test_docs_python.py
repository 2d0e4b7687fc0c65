"""The examples of docs/python.md run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.cli_processes import running_queue
from tests.support.processes import DEMO_MODEL, ROOT


def test_every_example_runs_and_prints_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with running_queue(tmp_path, HUGQUEUE_MODEL_ROOTS=str(DEMO_MODEL.parent)) as queue:
        said = [
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env=queue.environ,
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
            for code in examples
        ]
        assert queue.run("jobs", "--label", "run=7").stdout.count("\n") == 1
    assert said[0] == "0 paris\n1 rome\n" and "`0 paris` and `1 rome`" in page
    columns = ["text", "id", "output", "error_code", "error_message", "truncated"]
    assert said[1] == f"1000\n{columns}\n"
    assert said[2].strip() in page
    assert re.fullmatch(r"job:[0-9a-f]{12}\n", said[3])
    assert said[4] == "articles completed 1000\n"
    assert len(said) == 5
