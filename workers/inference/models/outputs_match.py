"""Whether two ways of running a model give the same, but for the order in which numbers were added."""

import torch
from torch import Tensor

#: Largest difference from what is expected, by the largest number of it: float32, and lower precision.
_TOLERANCE = {torch.float32: 1e-4}
_LOOSE = 5e-2


def outputs_match(found: Tensor, expected: Tensor, *, loose: bool = False) -> bool:
    """Whether `found`, on whatever device, is `expected` (float32, on the CPU) within the tolerance of its dtype.

    Args:
        found: what one way gave.
        expected: what the other way gave; infinite numbers must be the same, and NaN equals nothing.
        loose: whether `found` was computed in less than its own dtype.
    """
    if found.shape != expected.shape:
        return False
    tolerance = _LOOSE if loose else _TOLERANCE.get(found.dtype, _LOOSE)
    found, finite = found.cpu().float(), expected.isfinite()
    if not torch.equal(found[~finite], expected[~finite]):
        return False
    if not finite.any():
        return True
    found, expected = found[finite], expected[finite]
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
