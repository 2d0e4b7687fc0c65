"""Timing: medians and ratios. Strategies take turns for several rounds, so that load on the machine affects all alike.

If a strategy fails, its row shows the error, and the others continue.
"""

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.strategies import Strategy

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Figure:
    """The times of one strategy in each round, and its outputs; or its error."""

    positions: Sequence[int]  #: of its texts; slow strategies run only some
    seconds: list[float] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    failure: str = ""

    @property
    def records(self) -> int:
        """Number of texts in a round."""
        return len(self.positions)

    @property
    def rate(self) -> float:
        """Records per second, the median of the rounds."""
        return self.records / statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """Records per second in the slowest and the fastest round."""
        return f"{self.records / max(self.seconds):,.1f}-{self.records / min(self.seconds):,.1f}"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A function that prepares a strategy, and its share of the texts, such as 0.1 for one ten times as slow."""

    make: Callable[[], Strategy]
    share: float = 1.0

    def positions(self, texts: Sequence[str]) -> Sequence[int]:
        """Return the positions of its texts, in order: every n-th by length, so that a sample resembles the whole."""
        step = max(1, round(1 / self.share))
        by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        return sorted(by_length[step // 2 :: step])


def measure(contestants: Mapping[str, Contestant], texts: Sequence[str], rounds: int) -> dict[str, Figure]:
    """Return the figures of all strategies over the same texts, after a short unmeasured round."""
    figures = {name: Figure(one.positions(texts)) for name, one in contestants.items()}
    strategies: dict[str, Strategy] = {}
    for name, one in contestants.items():
        with _noted(name, figures[name]):
            strategies[name] = one.make()
            strategies[name](texts[:: max(1, len(texts) // 8)])
    for _ in range(rounds):
        for name, strategy in strategies.items():
            if figures[name].failure:
                continue
            with _noted(name, figures[name]):
                part = [texts[at] for at in figures[name].positions]
                begun = time.perf_counter()
                outputs = strategy(part)
                figures[name].seconds.append(time.perf_counter() - begun)
                figures[name].outputs = outputs
    return figures


def table(
    title: str, figures: Mapping[str, Figure], base: str, notes: Mapping[str, str], noted: str = "outputs"
) -> str:
    """Return a Markdown table: records per second, the speed of `base` as a ratio, and a note on each strategy."""
    lines = [
        f"\n### {title}\n",
        f"| strategy | records/s | {base} is | slowest-fastest | {noted} |",
        "|---|--:|--:|--:|---|",
    ]
    for name, figure in figures.items():
        if figure.failure or not figure.seconds:
            lines.append(f"| {name} | | | | failed: {figure.failure} |")
            continue
        ratio = "" if figures[base].failure else f"{figures[base].rate / figure.rate:.2f} x"
        lines.append(f"| {name} | {figure.rate:,.1f} | {ratio} | {figure.spread} | {notes.get(name, '')} |")
    return "\n".join(lines)


def reason(error: BaseException) -> str:
    """Return the error as one line for a cell of a table."""
    return " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())[:200]


@contextlib.contextmanager
def _noted(name: str, figure: Figure) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the boundary of a strategy: the others are still measured
        logger.debug("%s failed", name, exc_info=True)
        figure.failure = reason(error)
