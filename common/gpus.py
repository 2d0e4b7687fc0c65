"""GPUs of this machine, listed by nvidia-smi, without torch."""

import os
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as nvidia-smi lists it."""

    index: int
    uuid: str
    name: str


def find_gpus() -> list[Gpu]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES, or all; none without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",", 2)] for line in answer.splitlines() if line.strip()]
    gpus = [Gpu(int(index), uuid, name) for index, uuid, name in rows]
    return _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _visible(gpus: list[Gpu], visible: str | None) -> list[Gpu]:
    if visible is None:
        return gpus
    named = {**{str(gpu.index): gpu for gpu in gpus}, **{gpu.uuid: gpu for gpu in gpus}}
    return [named[word.strip()] for word in visible.split(",") if word.strip() in named]
