"""A plugin of vLLM, which its processes load when they start (the entry points `vllm.general_plugins`)."""

import multiprocessing
import os
import signal

from common.processes import set_parent_death_signal

#: Environment variable of a device process with an engine, and of all processes below it.
MARK = "_HUGQUEUE_ENGINE"


def end_with_parent() -> None:
    """In a process below a device process, have the kernel end it with its parent: it would hold its memory."""
    parent = multiprocessing.parent_process()
    if MARK in os.environ and parent is not None:
        set_parent_death_signal(signal.SIGKILL)
        if not parent.is_alive():  # it died before that
            os._exit(1)
