"""Timing of alternatives on this machine."""

import time
from collections.abc import Callable


def best_seconds(*calls: Callable[[], object], rounds: int = 20) -> list[float]:
    """Return the best time of each call in seconds; they are interleaved, so that a busy machine slows all alike."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, found, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in found]
