"""Child environment: variables of processes that run models, without secrets and with a thread for each CPU."""

import math
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from common.training.reporters import other_credentials

#: Secrets of the Celery process that its children do not need.
_SECRETS = (
    "CELERY_BROKER_URL",
    "REDIS_URL",
    "REDIS_PASSWORD",
    "HUGQUEUE_CONTROL_BROKER_URL",
    "HUGQUEUE_CONTROL_RESULT_BACKEND",
    "HUGQUEUE_NOTIFY_SECRET",
    "HUGQUEUE_NOTIFY_URL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
)


def available_cpus(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many CPUs this process may use, by its affinity and its container's limit.

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


def child_env(device: str, processes: int = 1, reporters: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment of processes that run models.

    Args:
        device: `cpu`, `cuda`.
        processes: how many there are.
        reporters: what they may report to, with the credentials of the worker's environment.
    """
    withheld = {*_SECRETS, *other_credentials(reporters)}
    env = {name: value for name, value in os.environ.items() if name not in withheld}
    env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""  # a CPU worker must not allocate GPU memory
    threads = max(1, available_cpus() // processes)
    if threads < _all_cpus():  # torch's own default
        env.setdefault("OMP_NUM_THREADS", str(threads))
    root = Path(__file__).resolve().parents[1]
    if root != Path(sysconfig.get_path("purelib")).resolve():  # run from a checkout
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), env.get("PYTHONPATH"))))
    return env
