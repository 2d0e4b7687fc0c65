"""Progress on stderr: a bar on a terminal, a line where something changes elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.progress import TaskID as BarId
from rich.text import Text

from common.durations import duration
from common.jobs import Job, JobStatus
from common.text import one_line
from producer.cli.terminal import is_quiet, notify
from producer.cli.training_progress import format_evaluation, status_line, step_counts
from producer.submit.upload import Totals

#: Seconds between two lines where there is no terminal, unless a tenth of the job is done before.
_SECONDS = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Bar) -> Text:
        speed = task.finished_speed or task.speed
        return _hide_for_steps(task, lambda _: Text(f"{speed:,.0f} records/s" if speed else "", style="cyan"))


class _Count(MofNCompleteColumn):
    def render(self, task: Bar) -> Text:
        return _hide_for_steps(task, super().render)


class _Left(TimeRemainingColumn):
    def render(self, task: Bar) -> Text:
        return _hide_for_steps(task, super().render)


def _hide_for_steps(task: Bar, render: Callable[[Bar], Text]) -> Text:
    """Leave out what the text of a fine-tune job has already: both do not fit into 80 columns."""
    return Text("") if task.fields.get("unit") == "steps" else render(task)


class JobProgress:
    """Shows a job's progress; `update` takes every state that is seen."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._bar: BarId | None = None
        self._stage = ""
        self._notes = 0  #: how many were said
        self._told, self._told_at = 0, time.monotonic()  #: how many records were said to be done, and when

    def update(self, job: Job) -> None:
        """Show the state of the job."""
        self._say_notes(job)
        if self._progress is None:
            self._say_stage(job)
            self._say_done(job)
            return
        trains = job.spec.training is not None
        if trains:
            self._say_evaluation(job)
        done, total = _progress_counts(job)
        if self._bar is None:
            self._bar = self._progress.add_task("", total=total, unit="steps" if trains else "records")
        text = _bar_text(job) if trains else job.stage or str(job.status)
        if job.counts.failed:
            text += f", {job.counts.failed:,} failed"
        self._progress.update(self._bar, completed=done, total=total, description=text)

    def _say_notes(self, job: Job) -> None:
        notes = job.progress.get("notes") or []
        for note in notes[self._notes :]:
            self._write(str(note))
        self._notes = len(notes)

    def _say_evaluation(self, job: Job) -> None:
        evaluated = format_evaluation(job)
        if evaluated and evaluated != self._stage:
            self._stage = evaluated
            self._write(evaluated)

    def _say_stage(self, job: Job) -> None:
        # "downloading X (440 MB): 35 %": one line for each thing, not for each per cent.
        told = job.stage if job.spec.training is None else status_line(job)
        stage = told.rsplit(":", 1)[0] if told.endswith("%") else told
        if stage and stage != self._stage and job.status is JobStatus.RUNNING:
            self._stage = stage
            self._write(stage)

    def _say_done(self, job: Job) -> None:
        """Say how far a job is after each tenth of it, and after some seconds in which something was done."""
        (done, total), now = _progress_counts(job), time.monotonic()
        if job.progress.get("stage") or not total or not done or done == self._told or done >= total:
            return
        if done * 10 // total == self._told * 10 // total and now < self._told_at + _SECONDS:
            return
        self._told, self._told_at = done, now
        if job.spec.training is not None:
            self._write(_bar_text(job))
            return
        failed = f", {job.counts.failed:,} failed" if job.counts.failed else ""
        self._write(f"{done:,} of {total:,} records done ({done * 100 // total} %){failed}")

    def _write(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(one_line(text), highlight=False, markup=False)
        else:
            notify(one_line(text))


@contextlib.contextmanager
def submit_progress() -> Iterator[Callable[[Totals], None]]:
    """Yield what shows how far the reading of the input is, while it lasts and only on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or is_quiet():
        yield lambda _: None
        return
    columns = (TextColumn("submitting {task.completed:,.0f} records"), _Rate())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda totals: progress.update(bar, completed=totals.records)


def job_bar(console: Console) -> Progress:
    """Return the bar of a job."""
    columns = (BarColumn(bar_width=24), _Count(), _Rate(), _Left(compact=True), TextColumn("{task.description}"))
    return Progress(*columns, console=console)


@contextlib.contextmanager
def job_progress() -> Iterator[JobProgress]:
    """Yield a progress that is shown as long as the block runs, as a bar if stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or is_quiet():
        yield JobProgress(None)
        return
    with job_bar(console) as progress:
        yield JobProgress(progress)


def _progress_counts(job: Job) -> tuple[int, int | None]:
    """Return how many records (of a fine-tune job: steps) are done, and of how many."""
    return step_counts(job) if job.spec.training is not None else (job.counts.done, job.records)


def _bar_text(job: Job) -> str:
    """Return what stands beside a bar: short enough for a terminal of 80 columns."""
    progress = job.progress
    if progress.get("stage") or not progress.get("steps"):
        return str(progress.get("stage") or job.status)
    words = [f"step {progress['step']:,} of {progress['steps']:,}"]
    if isinstance(loss := progress.get("loss"), int | float):
        words.append(f"loss {loss:.4g}")
    if isinstance(rate := progress.get("examples_per_second"), int | float):
        words.append(f"{rate:,.1f}/s")
    if isinstance(left := progress.get("seconds_left"), int | float):
        words.append(f"{duration(left)} left")
    return ", ".join(words)
