"""Results on their way from a GPU: the next batch is started before those of the last are waited for.

A GPU computes while the program goes on, until the program asks for a result. What is asked for here is only noted: a
copy into pinned memory that blocks nobody, and an event behind it. `workers.inference.core.batches` reads it one
batch later,
so that the device has the next batch to compute meanwhile. On a CPU there is nothing to wait for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:  # a device process whose runner needs no torch does not import it
    from torch import Tensor

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PendingResult(Generic[R]):
    """Results of a batch that was started; `read` waits for them, and raises what the batch failed of."""

    read: Callable[[], Sequence[R]]


def copy_to_host_async(
    tensors: Sequence["Tensor"], finish: Callable[[Sequence["Tensor"]], Sequence[R]]
) -> Sequence[R] | PendingResult[R]:
    """Return what `finish` makes of the tensors on the host: at once from a CPU, to be read later from a GPU."""
    if not any(tensor.is_cuda for tensor in tensors):
        return finish(tensors)
    import torch

    host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for target, tensor in zip(host, tensors, strict=True):
        target.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> Sequence[R]:
        copied.synchronize()
        return finish(host)

    return PendingResult(read)
