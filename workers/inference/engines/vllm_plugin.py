"""A plugin of vLLM, which its processes load when they start (the entry points `vllm.general_plugins`)."""

import multiprocessing
import signal

from common.processes import set_parent_death_signal

#: The name that the device process has for `multiprocessing`.
DEVICE_PROCESS = "hugqueue-device"


def end_with_device_process() -> None:
    """In a process that a device process started, have the kernel end it with that one: it would hold its memory."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.name == DEVICE_PROCESS:
        set_parent_death_signal(signal.SIGKILL)
