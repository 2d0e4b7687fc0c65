"""Arrow arrays of texts, numbers and flags, made without `pa.array`.

That one imports pandas wherever it is installed (`pandas-shim.pxi` of pyarrow), to see whether it was given some of it:
0.4 s and 42 MB in each process, half the time that a small submit takes.
"""

from array import array
from collections.abc import Sequence

import pyarrow as pa

from common.errors import PayloadError


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Return an array of text.

    Raises:
        PayloadError: the texts are too large for one array.
    """
    if not any(text is not None for text in texts):
        return pa.nulls(len(texts), pa.string())
    builder = pa.lib.StringBuilder()
    builder.append_values(texts)
    built = builder.finish()
    if len(built) != len(texts):  # what does not fit is left out without a word
        raise PayloadError("A chunk's texts take more than 2 GB, which is too much. Submit in smaller chunks.")
    return built


def number_array(numbers: Sequence[int]) -> pa.Array:
    """Return an array of int32."""
    return pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(array("i", numbers))])


def flag_array(flags: Sequence[bool]) -> pa.Array:
    """Return an array of bool: a bit for each, the lowest of a byte first."""
    bits = bytearray(-(-len(flags) // 8))
    for place, flag in enumerate(flags):
        bits[place >> 3] |= flag << (place & 7)
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, pa.py_buffer(bits)])
