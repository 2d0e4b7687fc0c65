"""Whether two ways of running a model give the same, but for the order in which numbers were added."""

import torch
from torch import Tensor

#: Largest difference from what is expected, by the largest number of it: float32, and half precision.
_TOLERANCE = {torch.float32: 1e-4}
_HALF_TOLERANCE = 5e-2


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether `found`, on whatever device, is `expected` (float32, on the CPU) within the tolerance of its dtype."""
    if found.shape != expected.shape:
        return False
    tolerance = _TOLERANCE.get(found.dtype, _HALF_TOLERANCE)
    difference = (found.cpu().float() - expected).abs().max()
    return bool(difference <= tolerance * expected.abs().max())
