"""Timing: every way in turn, several rounds, so that all meet the same machine; medians and ratios."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.ways import Way


@dataclass(slots=True)
class Figure:
    """What one way took, round by round, and what it gave."""

    records: int  #: in a round; the slow ways get a part of the texts
    seconds: list[float] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Records per second, the median of the rounds."""
        return self.records / statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """Records per second at the slowest and at the fastest."""
        return f"{self.records / max(self.seconds):,.1f}-{self.records / min(self.seconds):,.1f}"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way, and the share of the texts that it gets: 0.1 for one that takes ten times as long."""

    way: Way
    share: float = 1.0

    def part(self, texts: Sequence[str]) -> Sequence[str]:
        """Return every n-th text, so that a part has the lengths of the whole."""
        return texts[:: max(1, round(1 / self.share))]


def measure(contestants: Mapping[str, Contestant], texts: Sequence[str], rounds: int) -> dict[str, Figure]:
    """Return the figures of all ways over the same texts; a short round before does not count."""
    figures = {name: Figure(len(one.part(texts))) for name, one in contestants.items()}
    for one in contestants.values():
        one.way(texts[:: max(1, len(texts) // 8)])
    for _ in range(rounds):
        for name, one in contestants.items():
            part = one.part(texts)
            begun = time.perf_counter()
            outputs = one.way(part)
            figures[name].seconds.append(time.perf_counter() - begun)
            figures[name].outputs = outputs
    return figures


def best_of(candidates: Mapping[str, Way], texts: Sequence[str]) -> tuple[str, Way]:
    """Return the quickest of the candidates on these texts: a peer is measured at its best batch size."""
    figures = measure({name: Contestant(way) for name, way in candidates.items()}, texts, 1)
    name = max(figures, key=lambda key: figures[key].rate)
    return name, candidates[name]


def table(title: str, figures: Mapping[str, Figure], base: str, notes: Mapping[str, str]) -> str:
    """Return a Markdown table: records per second, how many times as fast `base` is, and a note on each way."""
    lines = [
        f"\n### {title}\n",
        f"| way | records/s | {base} is | slowest-fastest | outputs |",
        "|---|--:|--:|--:|---|",
    ]
    for name, figure in figures.items():
        ratio = figures[base].rate / figure.rate
        lines.append(f"| {name} | {figure.rate:,.1f} | {ratio:.2f} x | {figure.spread} | {notes.get(name, '')} |")
    return "\n".join(lines)
