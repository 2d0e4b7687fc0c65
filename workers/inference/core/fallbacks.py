"""Fallbacks: how often a fast path failed and a slower one took its place, counted for the worker's heartbeat."""

import logging
import threading
from collections import Counter

logger = logging.getLogger(__name__)

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count_fallback(name: str, error: BaseException) -> None:
    """Count a fast path that raised; the first time, log it with its traceback.

    Args:
        name: of the fast path, for example `continuous_batching`.
        error: what it raised.
    """
    with _lock:
        _counts[name] += 1
        is_first = _counts[name] == 1
    if is_first:
        logger.warning("%s failed; the slower path runs instead (logged once)", name, exc_info=error)


def fallback_counts() -> dict[str, int]:
    """Return how often each fast path of this process fell back."""
    with _lock:
        return dict(_counts)
