"""Arrow arrays of texts, numbers, flags and vectors, built without `pa.array`.

`pa.array` imports pandas if it is installed (`pandas-shim.pxi` of pyarrow), to check its arguments for it: 0.4 s and
42 MB in each process, half the time of a small submit. It also takes 40 us for a list of 384 numbers; numpy takes 8.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
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
    if len(built) != len(texts):  # what does not fit is dropped silently
        raise PayloadError("A chunk's texts take more than 2 GB, which is too large. Submit in smaller chunks.")
    return built


def number_array(numbers: Sequence[int]) -> pa.Array:
    """Return an array of int32."""
    return pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(array("i", numbers))])


def flag_array(flags: Sequence[bool]) -> pa.Array:
    """Return an array of bool: a bit for each, the lowest of a byte first."""
    bits = bytearray(-(-len(flags) // 8))
    for number, flag in enumerate(flags):
        bits[number >> 3] |= flag << (number & 7)
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, pa.py_buffer(bits)])


def is_vector(kind: pa.DataType, *, fixed: bool = False) -> bool:
    """Whether a type is a list of float32, of fixed length (`fixed`) or of any length."""
    is_list = pa.types.is_fixed_size_list(kind) or (pa.types.is_list(kind) and not fixed)
    return bool(is_list and kind.value_type == pa.float32())


def vector_array(vectors: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of lists of numbers from sequences, None for a missing one.

    Raises:
        ValueError, TypeError: one does not have the length of `kind`, or holds other values than numbers.
    """
    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    nothing = [0.0] * (size or 0)
    rows = [_vector(nothing if vector is None else vector, size) for vector in vectors]
    numbers = np.concatenate(rows) if rows else np.zeros(0, np.float32)
    values = pa.Array.from_buffers(pa.float32(), numbers.size, [None, pa.py_buffer(numbers)])
    buffers = [flag_array([vector is not None for vector in vectors]).buffers()[1]]
    if size is None:
        buffers.append(pa.py_buffer(np.cumsum([0, *map(len, rows)], dtype=np.int32)))
    return pa.Array.from_buffers(kind, len(vectors), buffers, children=[values])


def _vector(numbers: Any, size: int | None) -> Any:
    vector = np.asarray(numbers, np.float32)
    if vector.ndim != 1 or size not in (None, len(vector)):
        raise ValueError(f"expected a vector of {size or 'some'} numbers, found the shape {vector.shape}")
    return vector


def vectors_of(column: pa.ChunkedArray) -> list[Any]:
    """Return the vectors of a column of fixed length, each a numpy array of float32, None for a missing one."""
    found: list[Any] = []
    for part in column.chunks:
        values = part.flatten()  # without those of missing vectors
        numbers = np.frombuffer(values.buffers()[1] or b"", np.float32, len(values), 4 * values.offset)
        rows = iter(numbers.reshape(-1, column.type.list_size))
        found += [next(rows) if there else None for there in part.is_valid().to_pylist()]
    return found


def column_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return an array of any type.

    Raises:
        pyarrow.ArrowException, TypeError, ValueError: a value is not of that type.
        PayloadError: texts are too large for one array.
    """
    if kind == pa.string():
        return text_array(values)
    if kind == pa.bool_():
        return flag_array(values)
    return vector_array(values, kind) if is_vector(kind) else pa.array(values, kind)
