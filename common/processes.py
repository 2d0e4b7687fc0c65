"""Child processes that end with their parent, even one that is killed."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

#: `prctl`: the signal to get when the parent dies (Linux).
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that has the new process asked to end (SIGTERM) when this one dies.

    Linux alone offers that, elsewhere it is None. Only for processes of one thread: the function runs between fork and
    exec, and what counts as the parent is the thread that started the child.
    """
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before that
            os._exit(1)

    return ask
