"""Memory of the device: how much is free, how much a model needs, and what happens to freed memory.

torch is used only if a runner has imported it: until then this process holds no GPU memory.
"""

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

_MEMINFO = Path("/proc/meminfo")
#: Files with a container's memory limit and usage: cgroup v2, then v1.
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)
#: Options of mallopt (malloc.h): freed memory beyond the first goes back to the system; blocks larger than the second
#: are mapped on their own.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: The largest block that is retained, in bytes; and the most that older versions of glibc accept for it.
_LARGEST_PIECE, _OLD_LARGEST_PIECE = 256 << 20, 32 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def memory_of(device: str) -> tuple[int | None, int | None]:
    """Return the free and the total memory of `device` (`cpu`, `cuda:0`) in bytes, None if unknown."""
    if not device.startswith("cuda"):
        return _host_memory()
    torch = sys.modules.get("torch")
    if torch is None:
        return None, None
    free, total = torch.cuda.mem_get_info(device)
    return free + _cached_by_torch(torch, device), total


def weight_bytes(directory: Path) -> int:
    """Return the bytes of weights in a model directory: of safetensors files if there are any, else of the others."""
    sizes = {suffix: 0 for suffix in _WEIGHTS}
    for path in directory.rglob("*"):
        if path.suffix in sizes and path.is_file():
            sizes[path.suffix] += path.stat().st_size
    return sizes[".safetensors"] or sum(sizes.values())


def retain_freed_memory(max_bytes: int = 512 << 20) -> None:
    """Have the C library retain up to `max_bytes` bytes of freed memory for the next batch.

    By default glibc returns the large tensors of every batch to the system, which hands each page out again and
    zeroed: a tenth of MiniLM's time in float32, a quarter in int8 (`benchmarks/README.md`). Does nothing without glibc.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    library.mallopt(_M_TRIM_THRESHOLD, max_bytes)
    if not library.mallopt(_M_MMAP_THRESHOLD, min(max_bytes, _LARGEST_PIECE)):
        library.mallopt(_M_MMAP_THRESHOLD, min(max_bytes, _OLD_LARGEST_PIECE))


def release() -> None:
    """Return unused memory to the system, including what is retained for batches."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _cached_by_torch(torch: Any, device: str) -> int:
    """Return what torch's allocator holds for the next tensors: free for this process, though not for the driver."""
    return int(torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _host_memory() -> tuple[int | None, int | None]:
    fields = _numbers(_MEMINFO, separator=":", unit=1024)
    free, total = fields.get("MemAvailable"), fields.get("MemTotal")
    for limit_file, use_file, stat_file in _CGROUPS:
        limit, use = _number(limit_file), _number(use_file)
        if limit is None or use is None or (total is not None and limit >= total):
            continue
        # Pages of files that were not used recently count as used, but are freed on demand.
        left = max(0, limit - use + _numbers(stat_file).get("inactive_file", 0))
        free, total = min(left, free if free is not None else left), limit
    return free, total


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _numbers(path: Path, separator: str = " ", unit: int = 1) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(separator) for line in lines)
    return {name: int(rest.split()[0]) * unit for name, _, rest in pairs if rest.strip()[:1].isdigit()}
