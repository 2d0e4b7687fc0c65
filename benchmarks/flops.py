"""The share of the processor's peak that a strategy reaches, with the peak measured on the spot."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

_SIZE = 2048  # of the square matrices whose product is timed
_ROUNDS = 8


@cache
def peak(dtype: str) -> float:
    """Return the operations a second of the fastest matrix product here: float32, bfloat16 or int8, of oneDNN."""
    import torch

    ones = torch.ones(_SIZE, _SIZE)
    if dtype == "int8":
        weight = torch.ops.onednn.qlinear_prepack(ones.to(torch.int8), None)
        values, scale, zero = ones.to(torch.uint8), torch.ones(_SIZE), torch.zeros(_SIZE, dtype=torch.int32)
        none: list[None] = []

        def product() -> object:
            return torch.ops.onednn.qlinear_pointwise(
                values, 1.0, 0, weight, scale, zero, None, 1.0, 0, torch.float32, "none", none, ""
            )
    else:
        matrix = ones.to(getattr(torch, dtype))
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix, None)

        def product() -> object:
            return torch.ops.mkldnn._linear_pointwise(matrix, packed, None, "none", [], "")

    with torch.inference_mode():
        return 2 * _SIZE**3 / min(_timed(product) for _ in range(_ROUNDS))


def encoder_operations(model: Path, texts: Sequence[str], limit: int) -> float:
    """Return the operations of an encoder's matrix products over the texts, of its layers' weights and of attention."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    rows = AutoTokenizer.from_pretrained(model)(list(texts), truncation=True, max_length=limit)["input_ids"]
    weights = 4 * hidden * hidden + 2 * hidden * inner
    return sum(2.0 * layers * len(row) * (weights + 2 * len(row) * hidden) for row in rows)


def _timed(product: Callable[[], object]) -> float:
    begun = time.perf_counter()
    product()
    return time.perf_counter() - begun
