"""Output parity: how far the outputs of two strategies agree, checked on the timed run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.measure import Figure


def notes(task: str, figures: Mapping[str, Figure], base: str) -> dict[str, str]:
    """Return for each strategy how close its outputs are to those of `base`, which runs over all texts.

    If the outputs of a strategy have another shape, its note says so; its time still counts.
    """
    ours = figures[base].outputs
    found: dict[str, str] = {}
    for name, figure in figures.items():
        if name == base or not figure.outputs:
            continue
        try:
            found[name] = compared(task, figure.outputs, [ours[at] for at in figure.positions])
        except (ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
            found[name] = f"not comparable: {error}"
    return found


def compared(task: str, found: Sequence[Any], expected: Sequence[Any]) -> str:
    """Return a short note on how close `found` is to `expected`, record by record."""
    if not len(found) or not len(expected):
        return ""
    if task == "embedding":
        return f"cosine {min(map(_cosine, found, expected)):.5f} at least"
    pairs = list(zip(map(_best, found), map(_best, expected), strict=True))
    equal = sum(one == other for one, other in pairs)
    return f"{100 * equal / len(pairs):.0f} % the same"


def _cosine(one: Any, other: Any) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _best(output: Any) -> Any:
    """Return the first word, label or text."""
    while isinstance(output, list):
        output = output[0]
    if isinstance(output, str):
        return output
    return next(output[key] for key in ("token", "label", "generated_text") if key in output)
