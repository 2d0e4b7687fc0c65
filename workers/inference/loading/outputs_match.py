"""Output comparison: whether two ways of running a model give equal outputs, up to rounding."""

import torch
from torch import Tensor

#: Largest difference, relative to the largest expected number: in float32, and in lower precision.
_TOLERANCE = {torch.float32: 1e-4}
_LOOSE = 5e-2


def outputs_match(found: Tensor, expected: Tensor, *, loose: bool = False) -> bool:
    """Whether `found`, on any device, equals `expected` (float32, on the CPU) within the tolerance of its dtype.

    Args:
        found: the output to check.
        expected: the output it should equal; infinite numbers must be equal, and NaN equals nothing.
        loose: whether `found` was computed in lower precision than its dtype.
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
