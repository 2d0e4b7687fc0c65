"""Device errors: which exceptions mean that memory ran out, and which that the device is lost."""

import sys

#: Parts of what torch says when an allocation fails: its own, and those of the driver and of NVIDIA's libraries.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class EngineDied(RuntimeError):
    """Raised when the process of an engine has ended."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as reported by torch, numpy or Python."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(part in text for part in _OUT_OF_MEMORY)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether this is an error of the GPU, or of an engine, after which all further calls in the process fail too."""
    if isinstance(error, EngineDied):
        return True
    fatal = isinstance(error, RuntimeError) and "CUDA error" in str(error)
    return fatal and not is_out_of_memory(error) and not _device_answers()


def _device_answers() -> bool:
    """Whether the GPU still works: after an error of one call, such as a product that it does not support, it does."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
