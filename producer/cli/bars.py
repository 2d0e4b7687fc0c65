"""Progress bars, drawn by rich."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Bar) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} records/s" if speed else "", style="cyan")


class JobBar:
    """The bar of one job, shown until `stop`.

    Args:
        console: where it is drawn.
        total: of what is to be done, None if unknown.
        counts: whether numbers, a rate and the remaining time stand beside it.
    """

    def __init__(self, console: Console, total: int | None, *, counts: bool) -> None:
        numbers = (MofNCompleteColumn(), _Rate(), TimeRemainingColumn(compact=True)) if counts else ()
        columns = (BarColumn(bar_width=24), *numbers, TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console)
        self._progress.start()
        self._bar = self._progress.add_task("", total=total)

    def update(self, done: int, total: int | None, text: str) -> None:
        """Show how much is done, and a text."""
        self._progress.update(self._bar, completed=done, total=total, description=text)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


@contextmanager
def submit_bar(console: Console) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many records were read; what it shows goes away at the end."""
    columns = (TextColumn("submitting {task.completed:,.0f} records"), _Rate())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda records: progress.update(bar, completed=records)
