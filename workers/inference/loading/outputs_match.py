"""Output comparison: whether two ways of running a model give equal outputs, up to rounding."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from workers.inference.core.device_errors import is_device_lost, is_out_of_memory

logger = logging.getLogger(__name__)

#: Largest difference, relative to the largest expected number: in float32, and in lower precision.
_TOLERANCE = {torch.float32: 1e-4}
_LOOSE = 5e-2
#: Least cosine of a quantized model's output to that of its own layers. Rounding alone gives 0.99 or more; less is not
#: rounding, such as weights that the architecture reads by itself.
_MIN_COSINE = 0.95


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


def points_the_same_way(found: Tensor, expected: Tensor) -> bool:
    """Whether the output of quantized layers, `found`, differs from `expected` by rounding alone; neither has NaN."""
    finite = expected.isfinite()
    if not torch.equal(found[~finite], expected[~finite]):
        return False
    found, expected = found[finite].float(), expected[finite].float()
    if not expected.any():
        return not found.any()
    return bool(nn.functional.cosine_similarity(found, expected, dim=0) >= _MIN_COSINE)  # False for NaN


def expected_output(model: Any) -> Tensor | None:
    """Return what `dummy_output` does; None if the model cannot run on its dummy inputs, such as one of images too."""
    try:
        return dummy_output(model)
    except Exception as error:  # any architecture may be loaded, and may raise anything
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        name = type(model).__name__
        logger.debug("%s keeps its own layers: it does not run on its dummy inputs", name, exc_info=True)
        return None


def dummy_output(model: Any) -> Tensor:
    """Return the model's first output for its dummy inputs."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        inputs = {
            k: value.to(device) if isinstance(value, Tensor) else value for k, value in model.dummy_inputs.items()
        }
        output = model(**inputs)
    return next(value for value in output.values() if isinstance(value, Tensor))
