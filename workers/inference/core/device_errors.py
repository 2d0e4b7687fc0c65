"""Device errors: which exceptions mean that memory ran out, and which that the device is lost."""


class EngineDied(RuntimeError):
    """Raised when the process of an engine has ended."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as reported by torch, numpy or Python."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in text
        or "CUDA out of memory" in text
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether this is an error of the GPU, or of an engine, after which all further calls in the process fail too."""
    if isinstance(error, EngineDied):
        return True
    text = str(error)
    fatal = isinstance(error, RuntimeError) and "CUDA error" in text and "out of memory" not in text
    return fatal and not is_out_of_memory(error)
