"""Progress on stderr: a bar on a terminal, otherwise a line whenever something changes."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Self

from common.display_text import one_line
from common.durations import format_duration
from common.jobs import Job, JobStatus
from common.records import Json
from producer.cli.terminal import is_quiet, notify
from producer.submit.upload import Totals

if TYPE_CHECKING:  # rich is loaded only on a terminal
    from rich.console import Console

    from producer.cli.bars import JobBar

#: Seconds between two lines without a terminal, unless a tenth of the job is done earlier.
_LINE_SECONDS = 10.0
#: How much of a job is done that another one waits for.
_SHARE = re.compile(r" \([^)]*\)")


class JobProgress:
    """Shows a job's progress until its block ends; `update` takes every observed state."""

    def __init__(self, console: "Console | None") -> None:
        """Show a bar on a terminal; without a console, print lines."""
        self._console = console
        self._bar: JobBar | None = None
        self._stage = ""
        self._notes = 0  #: how many were printed
        self._printed, self._printed_at = 0, time.monotonic()  #: the count printed last, and when

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, job: Job, waits: str = "") -> None:
        """Show the state of the job; `waits` says what it waits for, if it does."""
        notes = job.progress.get("notes") or []
        for note in notes[self._notes :]:
            self._print(str(note))
        self._notes = len(notes)
        if self._console is None:
            self._print_stage(job, waits)
            self._print_count(job)
        else:
            self._update_bar(self._console, job, waits)

    def _update_bar(self, console: "Console", job: Job, waits: str) -> None:
        trains = job.spec.training is not None
        if trains:
            self._print_once(format_evaluation(job))
        done, total = _progress_counts(job)
        if self._bar is None:
            from producer.cli.bars import JobBar

            # The text of a fine-tune job contains its counts: both do not fit into 80 columns.
            self._bar = JobBar(console, total, counts=not trains)
        text = waits or (_bar_text(job) if trains else job.stage or str(job.status))
        if job.counts.failed:
            text += f", {job.counts.failed:,} failed"
        self._bar.update(done, total, text)

    def _print_stage(self, job: Job, waits: str) -> None:
        self._print_once(_SHARE.sub("", waits))
        # "downloading X (440 MB): 35 %": one line per download, not per percent.
        stage = job.stage if job.spec.training is None else status_line(job)
        if job.status is JobStatus.RUNNING:
            self._print_once(stage.rsplit(":", 1)[0] if stage.endswith("%") else stage)

    def _print_once(self, stage: str) -> None:
        if stage and stage != self._stage:
            self._stage = stage
            self._print(stage)

    def _print_count(self, job: Job) -> None:
        """Print how much of a job is done, after each tenth and every few seconds."""
        (done, total), now = _progress_counts(job), time.monotonic()
        if job.progress.get("stage") or not total or done in (0, self._printed) or done >= total:
            return
        if done * 10 // total == self._printed * 10 // total and now < self._printed_at + _LINE_SECONDS:
            return
        self._printed, self._printed_at = done, now
        if job.spec.training is not None:
            self._print(_bar_text(job))
            return
        failed = f", {job.counts.failed:,} failed" if job.counts.failed else ""
        self._print(f"{done:,} of {total:,} records done ({done * 100 // total} %){failed}")

    def _print(self, text: str) -> None:
        if self._console is not None:
            self._console.print(one_line(text), highlight=False, markup=False)
        else:
            notify(one_line(text))


@contextlib.contextmanager
def submit_progress() -> Iterator[Callable[[Totals], None]]:
    """Yield a callback that shows on a terminal how much of the input was read."""
    console = terminal()
    if console is None:
        yield lambda _: None
        return
    from producer.cli.bars import submit_bar

    with submit_bar(console) as update:
        yield lambda totals: update(totals.records)


def terminal() -> "Console | None":
    """Return stderr if it is a terminal, and messages are wanted."""
    if is_quiet() or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return console if console.is_terminal else None


def _progress_counts(job: Job) -> tuple[int, int | None]:
    """Return how many records (or steps of a fine-tune job) are done, and their total."""
    if job.spec.training is None:
        return job.counts.done, job.records
    return int(job.progress.get("step") or 0), job.progress.get("steps")


def _bar_text(job: Job) -> str:
    """Return the text next to the bar of a fine-tune job, short enough for 80 columns."""
    progress = job.progress
    if progress.get("stage") or not progress.get("steps"):
        return str(progress.get("stage") or job.status)
    words = [f"step {progress['step']:,} of {progress['steps']:,}"]
    if isinstance(loss := progress.get("loss"), int | float):
        words.append(f"loss {loss:.4g}")
    if isinstance(rate := progress.get("examples_per_second"), int | float):
        words.append(f"{rate:,.1f}/s")
    if isinstance(left := progress.get("seconds_left"), int | float):
        words.append(f"{format_duration(left)} left")
    return ", ".join(words)


def format_metrics(metrics: Mapping[str, Json]) -> str:
    """Return the metrics of an evaluation, such as `accuracy 0.93, f1 0.9`, without those that have no value."""
    return ", ".join(
        f"{name.removeprefix('eval_') if name != 'eval_loss' else name} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, int | float)
    )


def format_evaluation(job: Job) -> str:
    """Return the latest evaluation of a fine-tune job, empty if there was none."""
    metrics = job.progress.get("metrics")
    return f"evaluated: {format_metrics(metrics)}" if metrics else ""


def status_line(job: Job) -> str:
    """Return the stage of a fine-tune job, or its latest evaluation; the same text while neither changes."""
    progress = job.progress
    if progress.get("stage") or not progress.get("metrics"):
        return str(progress.get("stage") or ("training" if "step" in progress else ""))
    return format_evaluation(job)
