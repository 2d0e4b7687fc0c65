"""Child processes that end with their parent, even if it is killed (Linux)."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded here: between fork and exec nothing may be imported.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends; only on Linux."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number)


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that has a child terminated (SIGTERM) when this process dies; None if not on Linux.

    Only for processes of one thread: the function runs between fork and exec, and the kernel watches the thread that
    started the child.
    """
    parent = os.getpid()

    def set_signal() -> None:
        set_parent_death_signal(signal.SIGTERM)
        if os.getppid() != parent:  # it died before that
            os._exit(1)

    return set_signal if _prctl is not None else None
