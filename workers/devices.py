"""The devices that workers of this machine serve, and who uses which GPU."""

import dataclasses
import os
import platform
from pathlib import Path

import redis

from common.errors import UsageError
from common.gpus import Gpu, find_gpus
from common.jobs import TRAIN
from common.redis import keys
from common.redis.locks import acquire_lock, release_lock
from common.settings import Settings

#: Milliseconds after which the claim of a dead supervisor ends.
CLAIM_MS = 30_000


def select_devices(device: str, gpus: list[Gpu]) -> list[Gpu | None]:
    """Return the devices that `--device` names: a GPU each, or None for the CPU.

    Raises:
        UsageError: it names a GPU that is not there, or nothing at all.
    """
    if device == "cpu" or (device == "auto" and not gpus):
        return [None]
    if device in ("auto", "gpu"):
        if not gpus:
            raise UsageError("--device gpu: no GPU was found (`nvidia-smi` lists none).")
        return list(gpus)
    words = [word.strip() for word in device.split(",")]
    if len(set(words)) < len(words):
        raise UsageError(f"--device {device}: a GPU is named twice.")
    known = {f"cuda:{number}": gpu for number, gpu in enumerate(gpus)}
    for word in words:
        if word not in known:
            found = ", ".join(known) or "no GPU"
            raise UsageError(f"--device {word!r} is not here: expected auto, cpu, gpu or cuda:N; found {found}.")
    return [known[word] for word in words]


def default_device(settings: Settings) -> Settings:
    """Return the settings with one device: of `auto` and `gpu` the first GPU, or else the CPU.

    Raises:
        UsageError: the device is not here, or is more than one: one worker serves one.
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
    """Return the queues that a worker serves: those it was told, else that of its device and `any`."""
    own = settings.queues or (("gpu", "any") if settings.device.startswith("cuda") else ("cpu", "any"))
    return (*own, TRAIN) if settings.train and TRAIN not in own else own


def only_trains(settings: Settings) -> bool:
    """Whether a worker serves the queue `train` alone: it needs no device process."""
    return queues_of(settings) == (TRAIN,)


def describe_device(device: str) -> str:
    """Return what the device is called."""
    if device.startswith("cuda"):
        gpus, number = find_gpus(), int(device.partition(":")[2] or 0)
        return gpus[number].name if number < len(gpus) else "GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} × {os.cpu_count()}"


def claim(client: "redis.Redis", gpu: Gpu, owner: str) -> bool:
    """Take the GPU, or keep it; return whether it is `owner`'s. Two containers on one machine share out GPUs so."""
    return acquire_lock(client, keys.device_claim(gpu.uuid), owner, CLAIM_MS)


def release(client: "redis.Redis", gpu: Gpu, owner: str) -> None:
    """Give the GPU back, if it is `owner`'s."""
    release_lock(client, keys.device_claim(gpu.uuid), owner)
