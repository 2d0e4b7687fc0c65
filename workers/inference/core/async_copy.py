"""Asynchronous device-to-host copies: the next batch starts before the results of the last one are read.

A GPU computes while the program continues, until the program reads a result. Here a result is copied into pinned memory
without blocking, followed by an event. `workers.inference.core.batches` reads it one batch later, so that the device
always has a batch to compute. On a CPU there is nothing to wait for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:  # a device process whose runner needs no torch does not import it
    from torch import Tensor

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class PendingResult(Generic[R_co]):
    """Results of a batch that has started; `read` waits for them, and raises the batch's error."""

    read: Callable[[], Sequence[R_co]]

    def then(self, finish: Callable[[Sequence[R_co]], Sequence[V]]) -> "PendingResult[V]":
        """Return what `finish` makes of the results, once they are read."""
        return PendingResult(lambda: finish(self.read()))


def copy_to_host_async(
    tensors: Sequence["Tensor"], finish: Callable[[Sequence["Tensor"]], Sequence[R]]
) -> Sequence[R] | PendingResult[R]:
    """Return what `finish` makes of the tensors on the host: at once from a CPU, as a `PendingResult` from a GPU."""
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
