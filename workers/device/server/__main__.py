"""The device process: `python -P -m workers.device.server FD DEVICE`, started by `workers.device.client.process`."""

import faulthandler
import logging
import os
import signal
import sys

from common.logs import configure_logging
from common.processes import set_parent_death_signal
from workers.device.server.memory import retain_freed_memory
from workers.device.server.server import serve


def main() -> None:
    """Serve the socket whose descriptor is the first argument, on the device named by the second."""
    fd, device = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(fd, False)
    configure_logging(form="%(asctime)s %(levelname)s device %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "httpcore", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    faulthandler.enable()
    _die_with_parent()
    retain_freed_memory()
    serve(fd, device)


def _die_with_parent() -> None:
    """End with the Celery process, and not before.

    A service manager that stops a worker signals its whole process group; the running chunk may still be finished, so
    this process ignores the signal and waits for its socket to close. A computation that holds the GIL would not see
    that, so the kernel kills this process together with the thread that started it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_parent_death_signal(signal.SIGKILL)


if __name__ == "__main__":
    main()
