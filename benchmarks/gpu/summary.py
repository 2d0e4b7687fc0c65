"""The summary of a run on a GPU, as Markdown and JSON, written anew after each step."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

#: Lines of a log that are shown of a step that failed.
_SHOWN = 25


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a step."""

    step: str
    status: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it did what it should."""
        return self.status == "passed"


class Summary:
    """Collects results in `summary.md` and `summary.json` of a folder.

    Args:
        folder: where the logs and the figures of the steps are, too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results: list[Result] = []
        self._parts: list[str] = []

    @property
    def path(self) -> Path:
        """The file for people."""
        return self._folder / "summary.md"

    @property
    def failed(self) -> bool:
        """Whether any step did not pass."""
        return not all(result.passed for result in self._results)

    def add(self, step: str, status: str, seconds: float, log: Path) -> Result:
        """Note a result, and write both files."""
        result = Result(step, status, round(seconds, 1))
        self._results.append(result)
        lines = log.read_text(errors="replace").splitlines()
        self._parts.append(_shown(result, lines))
        rows = [f"| {one.step} | {one.status} | {one.seconds:.0f} |" for one in self._results]
        table = ["# Run on a GPU", "", "| step | result | seconds |", "|---|---|--:|", *rows]
        self.path.write_text("\n".join([*table, *self._parts, ""]))
        (self._folder / "summary.json").write_text(json.dumps(self._figures(), indent=1))
        return result

    def _figures(self) -> list[dict[str, object]]:
        found = []
        for result in self._results:
            figures = self._folder / f"{result.step}.json"
            found.append(asdict(result) | ({"figures": json.loads(figures.read_text())} if figures.exists() else {}))
        return found


def _shown(result: Result, lines: list[str]) -> str:
    """Return what the summary shows of a log: the figures, the last line of tests, or the end of what failed."""
    if not result.passed:
        shown = ["```", *lines[-_SHOWN:], "```"]
    elif result.step.startswith("test-"):
        shown = [line for line in lines if line.startswith("SKIPPED")] + lines[-1:]
    else:
        begin = next((at for at, line in enumerate(lines) if line.startswith("### ")), 0)  # behind the times of runs
        shown = [line for line in lines[:begin] if line.startswith("No queue")] + lines[begin:]
    return "\n".join(["", f"## {result.step}", "", *shown])
