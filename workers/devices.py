"""The devices of this machine: which of them a worker uses, and which queues it serves."""

import dataclasses
import os
import platform
from pathlib import Path

from common.errors import UsageError
from common.gpus import Gpu, find_gpus
from common.jobs import TRAIN
from common.settings import Settings

#: Instructions of x86 for products of bfloat16.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def select_devices(device: str, gpus: list[Gpu]) -> list[Gpu | None]:
    """Return the devices that `--device` names: a GPU each, or None for the CPU.

    Raises:
        UsageError: it names a GPU that does not exist, or no device.
    """
    if device == "cpu":
        return [None]
    if device == "auto":
        return list(gpus) or [None]
    if device == "gpu":
        if not gpus:
            raise UsageError("--device gpu: no GPU found (`nvidia-smi` lists none).")
        return list(gpus)
    return _named_gpus(device, gpus)


def _named_gpus(device: str, gpus: list[Gpu]) -> list[Gpu | None]:
    words = [word.strip() for word in device.split(",")]
    if len(set(words)) < len(words):
        raise UsageError(f"--device {device}: the same GPU is named twice.")
    known = {f"cuda:{number}": gpu for number, gpu in enumerate(gpus)}
    if unknown := sorted(set(words) - known.keys()):
        found = ", ".join(known) or "no GPU"
        raise UsageError(
            f"--device: there is no {unknown[0]!r} on this machine; expected auto, cpu, gpu or cuda:N, found {found}."
        )
    return [known[word] for word in words]


def default_device(settings: Settings) -> Settings:
    """Return the settings with one device: for `auto` and `gpu` the first GPU, else the CPU.

    Raises:
        UsageError: the device does not exist, or is more than one: a worker serves one.
    """
    if settings.device == "cpu":
        return settings
    gpus = find_gpus()
    first, *more = select_devices(settings.device, gpus)
    if more and settings.device not in ("auto", "gpu"):
        raise UsageError(
            f"HUGQUEUE_DEVICE={settings.device}: one worker serves one device; `workers start` serves several."
        )
    return dataclasses.replace(settings, device=f"cuda:{gpus.index(first)}" if first else "cpu")


def queues_of(settings: Settings) -> tuple[str, ...]:
    """Return the queues that a worker serves: those configured, else that of its device and `any`."""
    own = settings.queues or (("gpu", "any") if settings.device.startswith("cuda") else ("cpu", "any"))
    return (*own, TRAIN) if settings.train and TRAIN not in own else own


def only_trains(settings: Settings) -> bool:
    """Whether a worker serves only the queue `train`: it needs no device process."""
    return queues_of(settings) == (TRAIN,)


def faster_dtype(settings: Settings) -> str:
    """Return the dtype in which a worker's CPU computes much faster than in its default; empty if there is none."""
    if settings.device != "cpu" or settings.dtype not in ("auto", "float32"):
        return ""
    return "bfloat16" if _BFLOAT16_FLAGS & set(_cpu_fact("flags").split()) else ""


def describe_device(device: str) -> str:
    """Return the device's product name."""
    if device.startswith("cuda"):
        gpus, number = find_gpus(), int(device.partition(":")[2] or 0)
        return gpus[number].name if number < len(gpus) else "GPU"
    name = _cpu_fact("model name") or platform.processor() or platform.machine()
    return f"{name} × {os.cpu_count()}"


def _cpu_fact(name: str) -> str:
    """Return what Linux says of the first CPU under a name, empty if nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
