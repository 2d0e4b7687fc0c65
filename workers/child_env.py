"""The environment of processes that run models: without the worker's secrets, with as many threads as it has cores."""

import math
import os
import sysconfig
from pathlib import Path

#: Secrets of the Celery process that what runs models has no use for.
_SECRETS = ("CELERY_BROKER_URL", "REDIS_URL")


def available_cpus(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may keep busy, as far as affinity and a container's limit go.

    Args:
        limit: "QUOTA PERIOD" in microseconds, or "max PERIOD" (Linux, `Documentation/admin-guide/cgroup-v2.rst`).
    """
    try:
        quota, period = limit.read_text().split()
    except (OSError, ValueError):
        return _all_cpus()
    return min(_all_cpus(), max(1, math.ceil(int(quota) / int(period)))) if quota.isdigit() else _all_cpus()


def _all_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def child_env(device: str, processes: int = 1) -> dict[str, str]:
    """Return the environment of so many processes that run models on `device` (`cpu`, `cuda`)."""
    env = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""  # a worker for the CPU takes no memory of a GPU
    threads = max(1, available_cpus() // processes)
    if threads < _all_cpus():  # which torch takes by itself
        env.setdefault("OMP_NUM_THREADS", str(threads))
    root = Path(__file__).resolve().parents[1]
    if root != Path(sysconfig.get_path("purelib")).resolve():  # run from a checkout
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), env.get("PYTHONPATH"))))
    return env
