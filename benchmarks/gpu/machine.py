"""What the GPU of this machine can do at most: its products of large matrices a second, and its memory."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import described
from workers.inference.loading.float8_layers import FLOAT8, supports_float8

#: Products, or copies, that are timed together.
_REPEATS = 20


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    chosen = parser.parse_args()
    print(described("bfloat16" if chosen.device.startswith("cuda") else "float32"), flush=True)
    size = 256 if chosen.tiny else 8192
    figures: dict[str, float] = {}
    for name, product in _products(size, chosen.device).items():
        figures[f"{name} TFLOP/s"] = 2 * size**3 / _seconds(product, chosen.device) / 1e12
    source = torch.empty(size * size * 16, dtype=torch.uint8, device=chosen.device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), chosen.device)
    figures["copy TB/s, read and written"] = 2 * source.nbytes / seconds / 1e12
    for name, figure in figures.items():
        print(f"* {name}: {figure:.3g}", flush=True)
    chosen.json.write_text(json.dumps(figures))


def _products(size: int, device: str) -> dict[str, Callable[[], object]]:
    # Of random numbers: with zeros a GPU draws less power, and is faster.
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    found: dict[str, Callable[[], object]] = {"bfloat16": lambda: one @ other}
    if device == "cpu" or supports_float8(device):
        rows, columns = one.to(FLOAT8), other.t().contiguous().to(FLOAT8).t()
        scales = torch.ones(size, 1, device=device), torch.ones(1, size, device=device)
        found["float8"] = lambda: torch._scaled_mm(
            rows, columns, scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return found


def _seconds(call: Callable[[], object], device: str) -> float:
    """Return the mean seconds of a call, after a few that are not timed."""
    for _ in range(3):
        call()
    _wait(device)
    begun = time.perf_counter()
    for _ in range(_REPEATS):
        call()
    _wait(device)
    return (time.perf_counter() - begun) / _REPEATS


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
