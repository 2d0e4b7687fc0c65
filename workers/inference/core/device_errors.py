"""Device errors: which exceptions mean that memory ran out, and which that the device is lost."""


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
    """Whether this is an error of the GPU after which all further calls in the process fail too."""
    text = str(error)
    fatal = isinstance(error, RuntimeError) and "CUDA error" in text and "out of memory" not in text
    return fatal and not is_out_of_memory(error)
