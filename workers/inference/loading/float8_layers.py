"""Linear layers in float8, for GPUs that multiply such matrices: twice as many operations a second as in bfloat16.

Weights are rounded once, with a scale for each output, inputs with a scale for each token (as in vLLM and torchao),
both to `e4m3`: 4 bits of exponent, 3 of mantissa. Products are added in float32 and returned in bfloat16.
"""

import torch
from torch import Tensor, nn

from workers.inference.loading.linear_layers import replace_layers
from workers.inference.loading.outputs_match import points_the_same_way

FLOAT8 = torch.float8_e4m3fn
#: The first GPUs that multiply it: Ada; then Hopper.
MIN_CAPABILITY = (8, 9)
_MAX = torch.finfo(FLOAT8).max
#: Dimensions of a weight must be multiples of it (cuBLAS).
_ALIGNMENT = 16


class Float8Linear(nn.Module):  # type: ignore[misc]
    """A linear layer that multiplies float8 matrices; inputs and outputs are bfloat16.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        rounded, scale = _quantize_rows(weight.float())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) for (..., inputs)."""
        if self.weight.dtype != FLOAT8:  # held in full precision for a while (`dtypes.in_full_precision`)
            return nn.functional.linear(values, self.weight, self.bias)
        rows, scale = _quantize_rows(values.reshape(-1, self.in_features))
        result: Tensor = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return result.view(*values.shape[:-1], self.out_features)

    def widened(self) -> Tensor:
        """Return the rounded weight in float32."""
        return self.weight.float() * self.scale.t()


def supports_float8(device: str) -> bool:
    """Whether this device (`cpu`, `cuda:0`) multiplies float8 matrices."""
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def use_float8(model: nn.Module) -> bool:
    """Compute the linear layers of a model in bfloat16, on its device, in float8.

    Returns:
        False, with the model unchanged, if it has no layers for it, or fails with them.
    """
    return replace_layers(model, Float8Linear, name="float8", agrees=points_the_same_way, suits=_is_aligned)


def _is_aligned(weight: Tensor) -> bool:
    return all(size % _ALIGNMENT == 0 for size in weight.shape)


def _quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `values` in float8, and the scale of each row, (rows, 1), in float32."""
    # One pass over memory, where `abs().amax()` takes two and memory for another copy.
    largest = torch.linalg.vector_norm(values, float("inf"), dim=1, keepdim=True).float().clamp_(min=1e-12)
    factor = (_MAX / largest).to(values.dtype)
    return (values * factor).to(FLOAT8), factor.float().reciprocal()
